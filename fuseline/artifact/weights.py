"""Tensors in the safetensors format, written without a copy of them and read from mapped memory.

A tensor may lie in memory in another order than row by row, and two may share memory: what is
written is the memory, once, and `Placed` says how a tensor lies on it. Members of a packed group
lie one behind the other, as merged products read them; every other one begins at 64 bytes. Between
them are tensors named ``.padding``, as the format allows no holes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fuseline.artifact.codec import DTYPES, MalformedError

ALIGNMENT = 64
MOST_HEADER = 64 << 20
PADDING = ".padding"
_PART = 64 << 20

_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.complex128: "C128",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
assert set(_NAMES) == set(DTYPES.values())


@dataclass(frozen=True)
class Placed:
    """A tensor on memory that is stored.

    Attributes:
        memory: the name that its memory is stored under.
        offset: of its first element there.
        shape: of the tensor.
        strides: of the tensor, in elements.
    """

    memory: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """What is written: pieces of memory by name, in order, and the tensors on them."""

    memory: Mapping[str, Tensor]
    tensors: Mapping[str, Placed]

    @property
    def nbytes(self) -> int:
        """Bytes of all memory."""
        return sum(t.nbytes for t in self.memory.values())


def stored(tensors: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> Stored:
    """How tensors are written: those of each group one behind the other, the others behind them.

    A tensor that is all of its memory, row by row, is that memory. One that shares memory with
    another, or has other strides, lies on the part of the storage that it spans.
    """
    grouped = dict.fromkeys(name for group in groups for name in group)
    memory: dict[str, Tensor] = {}
    placed: dict[str, Placed] = {}
    known: dict[tuple[int, int, int, torch.dtype], str] = {}
    for name in (*grouped, *(n for n in tensors if n not in grouped)):
        tensor = tensors[name].detach()
        span = _span(tensor)
        key = (span.data_ptr(), span.numel(), 0, tensor.dtype)
        home = known.get(key) if span.numel() else None
        if home is None:
            home = name
            known[key] = name
            memory[name] = tensor if tensor.is_contiguous() else span
        placed[name] = Placed(home, 0, tuple(tensor.shape), tuple(tensor.stride()))
    return Stored(memory, placed)


def _span(tensor: Tensor) -> Tensor:
    """The memory from the first element of a tensor to the last, in one dim."""
    if not tensor.numel():
        return tensor.reshape(0)
    steps = ((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((1 + sum(steps),), (1,), int(tensor.storage_offset()))


def header(memory: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> tuple[bytes, int]:
    """The head of a file with this memory, and the bytes of the whole file."""
    behind = {name for group in groups for name in group[1:]}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in memory.items():
        if name not in behind and (missing := -end % ALIGNMENT):
            entries[f"{PADDING}.{end}"] = _entry("U8", (missing,), end, missing)
            end += missing
        shape = tuple(tensor.shape)
        entries[name] = _entry(_NAMES[tensor.dtype], shape, end, tensor.nbytes)
        end += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def parts(memory: Mapping[str, Tensor], head: bytes) -> Iterator[bytes | memoryview]:
    """The bytes of the file, one after the other."""
    yield head
    entries: dict[str, Any] = json.loads(head[8:])
    for name, entry in entries.items():
        if name in memory:
            yield from _bytes_of(memory[name])
        elif name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield bytes(end - begin)


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """The memory of a tensor, some megabytes at a time where it lies elsewhere."""
    if not tensor.numel():
        return
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _PART):
        part: Any = flat[start : start + _PART]
        yield memoryview(part.cpu().numpy())


def _entry(dtype: str, shape: tuple[int, ...], begin: int, nbytes: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + nbytes]}


def read(data: memoryview) -> dict[str, Tensor]:
    """The tensors of a safetensors file that lies in memory, on that memory.

    Raises:
        MalformedError: the file is not what the format wants.

    """
    if len(data) < 8:
        raise MalformedError("a safetensors file of less than 8 bytes")
    size = int.from_bytes(data[:8], "little")
    if size > MOST_HEADER or 8 + size > len(data):
        raise MalformedError(f"a safetensors file of {len(data)} bytes with a head of {size}")
    try:
        entries: Any = json.loads(bytes(data[8 : 8 + size]))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the head of a safetensors file: {error}") from error
    if not isinstance(entries, dict):
        raise MalformedError("the head of a safetensors file is no object")
    body = data[8 + size :]
    found: dict[str, Tensor] = {}
    for name, entry in cast("dict[str, Any]", entries).items():
        if name != "__metadata__" and not name.startswith(PADDING):
            found[name] = _tensor(body, name, entry)
    return found


def _tensor(body: memoryview, name: str, entry: Any) -> Tensor:
    """One tensor of a file."""
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = [_count(n) for n in entry["shape"]]
        begin, end = (_count(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError(f"the tensor {name!r} of a safetensors file: {error}") from error
    count = 1
    for n in shape:
        count *= n
    if begin > end or end > len(body) or end - begin != count * dtype.itemsize:
        raise MalformedError(f"the tensor {name!r} at bytes {begin} to {end} of {len(body)}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(body, dtype=dtype, count=count, offset=begin).view(shape)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no size")
    return value


def place(memory: Mapping[str, Tensor], at: Placed) -> Tensor:
    """A tensor on memory that was read.

    Raises:
        MalformedError: it reaches beyond the memory, or there is none of that name.

    """
    base = memory.get(at.memory)
    if base is None:
        raise MalformedError(f"no memory {at.memory!r} is stored")
    if len(at.shape) != len(at.strides) or any(n < 0 for n in (*at.shape, *at.strides, at.offset)):
        raise MalformedError(f"a tensor on {at.memory!r} of sizes {at.shape}, {at.strides}")
    last = at.offset + sum((n - 1) * s for n, s in zip(at.shape, at.strides, strict=True))
    if 0 not in at.shape and last >= base.numel():
        raise MalformedError(f"a tensor that reaches beyond {at.memory!r}")
    if at.shape == tuple(base.shape) and at.strides == base.stride() and not at.offset:
        return base
    return base.reshape(-1).as_strided(at.shape, at.strides, int(base.storage_offset()) + at.offset)


__all__ = ["Placed", "Stored", "header", "parts", "place", "read", "stored"]
