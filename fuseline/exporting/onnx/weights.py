"""Parameters, buffers and constants as initializers: in the file, or in one beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from torch import Tensor

from fuseline.artifact.archive import beside
from fuseline.exporting.onnx.tensors import bytes_of, proto_of, typed

LARGEST = 2**31 - 2**24
"""Bytes of tensors that a file may have inside: protobuf ends at 2 GiB."""

_ALIGN = 4096
"""Where a tensor in a file beside begins, so that it can be mapped."""

_APART = 1024
"""Bytes from which a tensor is worth a place in the file beside."""


@dataclass(frozen=True)
class Stored:
    """What is written.

    Attributes:
        initializers: in the order of the names.
        beside: the name of the file with the data, if there is one, and its size.
    """

    initializers: list[onnx.TensorProto]
    beside: tuple[str, int] | None = None


@contextmanager
def stored(
    tensors: Mapping[str, Tensor], path: Path, *, embed: bool
) -> Generator[Stored, None, None]:
    """The initializers of a model that the block writes; data that lie beside it are written.

    The file beside is named by what it holds, so that an earlier model keeps its own.

    Raises:
        ArtifactError: FL1106, if that cannot be written.

    """
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    if embed and total <= LARGEST:
        yield Stored([proto_of(tensor, name) for name, tensor in tensors.items()])
        return
    apart = {n: t for n, t in tensors.items() if t.numel() * t.element_size() >= _APART}
    offsets, end = dict[str, int](), 0
    content = hashlib.sha256()
    for name, tensor in apart.items():
        start = -(-end // _ALIGN) * _ALIGN
        content.update(bytes(start - end))
        content.update(bytes_of(tensor))
        offsets[name], end = start, start + tensor.numel() * tensor.element_size()
    place = path.with_name(f"{path.name}.{content.hexdigest()[:12]}.data")
    found: list[onnx.TensorProto] = []
    for name, tensor in tensors.items():
        if name not in offsets:
            found.append(proto_of(tensor, name))
            continue
        size = tensor.numel() * tensor.element_size()
        found.append(_pointing(typed(tensor, name), place.name, offsets[name], size))

    def write(file: BinaryIO) -> None:
        at = 0
        for name, tensor in apart.items():
            file.write(bytes(offsets[name] - at))
            file.write(bytes_of(tensor))
            at = offsets[name] + tensor.numel() * tensor.element_size()

    with beside(place, write):
        yield Stored(found, (place.name, end))


def _pointing(proto: onnx.TensorProto, place: str, offset: int, size: int) -> onnx.TensorProto:
    proto.data_location = onnx.TensorProto.EXTERNAL
    entries: dict[str, Any] = {"location": place, "offset": offset, "length": size}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


__all__ = ["LARGEST", "Stored", "stored"]
