"""An ONNX model, and its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
from onnx import checker
from torch import Tensor

from fuseline import errors
from fuseline.artifact.archive import replacing
from fuseline.exporting.onnx import weights
from fuseline.exporting.onnx.writer import DOMAIN


@dataclass(frozen=True)
class Model:
    """An ONNX model before it is written.

    Attributes:
        proto: all of it but the initializers.
        tensors: those, by name.
    """

    proto: onnx.ModelProto
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: the file.
        nbytes: its size.
        beside: the name of the file with the weights, and its size, where there is one.
        opset: the version of the standard operators.
        operators: how often each standard operator occurs, functions included.
        functions: how often each function of the model is called.
    """

    path: Path
    nbytes: int
    beside: tuple[str, int] | None
    opset: int
    operators: Mapping[str, int]
    functions: Mapping[str, int]


def write(model: Model, path: Path, *, embed: bool, opset: int) -> Written:
    """Write a model, and have the checker of the package onnx read it before it takes its place.

    Where that refuses it, or there is no room, nothing is left of it, and all of an earlier model.

    Raises:
        ArtifactError: FL1106, it cannot be written.
        InternalError: the checker refuses it.

    """
    proto = model.proto
    with weights.stored(model.tensors, path, embed=embed) as found, replacing(path) as file:
        proto.graph.initializer.extend(found.initializers)
        file.write(proto.SerializeToString(deterministic=True))
        file.flush()
        with _in_folder(Path(file.name), path.parent) as place:
            _check(place)
    return Written(path, path.stat().st_size, found.beside, opset, *_counts(proto))


@contextmanager
def _in_folder(file: Path, folder: Path) -> Generator[Path, None, None]:
    """A path of a file in the folder that has the data: the file is elsewhere behind a link."""
    if file.parent == folder.resolve():
        yield folder / file.name
        return
    place = folder / file.name
    place.symlink_to(file)
    try:
        yield place
    finally:
        place.unlink()


def _check(path: Path) -> None:
    try:
        cast("Any", checker).check_model(str(path), full_check=True)
    except Exception as error:
        message = f"onnx.checker refuses the model that was written: {error}"
        raise errors.InternalError(message, stage="export to ONNX") from error


def _counts(proto: onnx.ModelProto) -> tuple[dict[str, int], dict[str, int]]:
    operators, calls = Counter[str](), Counter[str]()
    bodies: list[Any] = [proto.graph, *cast("Any", proto).functions]
    for body in bodies:
        for node in body.node:
            (calls if node.domain == DOMAIN else operators)[node.op_type] += 1
    return dict(sorted(operators.items())), dict(sorted(calls.items()))


__all__ = ["Model", "Written", "write"]
