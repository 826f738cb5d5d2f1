"""Tensors in the safetensors format, written without a copy of them and read from mapped memory.

A tensor may lie in memory in another order than row by row, and two may share memory: what is
written is the memory, once, and `Placed` says how a tensor lies on it. Members of a packed group
lie one behind the other, as merged products read them; every other one begins at 64 bytes. Between
them are tensors named ``.padding``, as the format allows no holes. State that begins as zeros (an
empty cache) takes no place: it is `Zeros`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fuseline.artifact.codec import DTYPES, MOST_NAME, MalformedError, is_text, parse

ALIGNMENT = 64
MOST_HEADER = 64 << 20
MOST_TENSORS = 1 << 18
"""Bytes of a head, and tensors, that a file may have."""

MOST_DIMS = 64
"""Of a tensor: torch has no more."""

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
class Zeros:
    """A tensor of zeros that lies row by row; nothing of it is stored.

    Attributes:
        dtype: of its elements.
        shape: of the tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes.

        Raises:
            MalformedError: a shape that no tensor has.

        """
        if len(self.shape) > MOST_DIMS or any(n < 0 for n in self.shape):
            raise MalformedError(f"zeros of sizes {self.shape[:8]}")
        return _product(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """What is written: pieces of memory by name, in order, and the tensors on them."""

    memory: Mapping[str, Tensor]
    tensors: Mapping[str, Placed | Zeros]

    @property
    def nbytes(self) -> int:
        """Bytes of all memory."""
        return sum(t.nbytes for t in self.memory.values())


def stored(
    tensors: Mapping[str, Tensor], groups: Sequence[Sequence[str]], state: Collection[str] = ()
) -> Stored:
    """How tensors are written: those of each group one behind the other, the others behind them,
    and state last, so that a GPU may be given all before it and nothing else.

    A tensor that is all of its memory, row by row, is that memory. One that shares memory with
    another, or has other strides, lies on the part of the storage that it spans.

    Args:
        tensors: by name.
        groups: names of tensors that merged products read as one.
        state: names of those that programs write: where these are zeros, nothing is stored.

    """
    grouped = dict.fromkeys(name for group in groups for name in group)
    others = sorted((n for n in tensors if n not in grouped), key=lambda name: name in state)
    memory: dict[str, Tensor] = {}
    placed: dict[str, Placed | Zeros] = {}
    known: dict[tuple[int, int, int, torch.dtype], str] = {}
    for name in (*grouped, *others):
        tensor = tensors[name].detach()
        if name in state and name not in grouped and _is_zeros(tensor):
            placed[name] = Zeros(tensor.dtype, tuple(tensor.shape))
            continue
        span = _span(tensor)
        key = (span.data_ptr(), span.numel(), 0, tensor.dtype)
        home = known.get(key) if span.numel() else None
        if home is None:
            home = name
            known[key] = name
            memory[name] = tensor if tensor.is_contiguous() else span
        placed[name] = Placed(home, 0, tuple(tensor.shape), tuple(tensor.stride()))
    return Stored(memory, placed)


def _is_zeros(tensor: Tensor) -> bool:
    """Whether every bit of a tensor that lies row by row is zero: minus zero is another number."""
    return tensor.is_contiguous() and not bool(tensor.reshape(-1).view(torch.uint8).any())


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


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its type, and the bytes that it takes behind the head."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def entries(start: bytes, size: int) -> tuple[dict[str, Entry], int]:
    """The tensors of a safetensors file of so many bytes, and where their bytes begin.

    Args:
        start: the file's first bytes, its head at least (see `head_size`).
        size: of the file.

    Raises:
        MalformedError: the file is not what the format wants: tensors follow one another without a
            gap or an overlap, and end where the file ends.

    """
    head = head_size(start, size)
    raw = parse(start[8:head], "the head of a safetensors file")
    if not isinstance(raw, dict):
        raise MalformedError("the head of a safetensors file is no object")
    items = {n: e for n, e in cast("dict[str, Any]", raw).items() if n != "__metadata__"}
    if len(items) > MOST_TENSORS:
        raise MalformedError(f"a safetensors file of {len(items)} tensors")
    found = {name: _entry_of(name, item) for name, item in items.items()}
    end = 0
    for entry in sorted(found.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise MalformedError(
                f"tensors of a safetensors file that overlap at byte {end}, or do not meet"
            )
        end = entry.end
    if end != size - head:
        raise MalformedError(f"a safetensors file of {size - head} bytes for {end} of tensors")
    return {n: e for n, e in found.items() if not n.startswith(PADDING)}, head


def head_size(start: bytes | memoryview, size: int) -> int:
    """The bytes of the head of a safetensors file, given at least its first 8 and its size.

    Raises:
        MalformedError: it is longer than the file, or than any head is.

    """
    if size < 8:
        raise MalformedError("a safetensors file of less than 8 bytes")
    head = 8 + int.from_bytes(start[:8], "little")
    if head > MOST_HEADER or head > size:
        raise MalformedError(f"a safetensors file of {size} bytes with a head of {head}")
    return head


def _entry_of(name: str, item: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = _DTYPES[item["dtype"]], item["shape"], item["data_offsets"]
        sizes = tuple(_count(n) for n in shape)
        entry = Entry(dtype, sizes, _count(begin), _count(end))
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError(
            f"the tensor {name[:80]!r} of a safetensors file: {error!r}"
        ) from error
    good = is_text(name) and len(name) <= MOST_NAME and len(sizes) <= MOST_DIMS
    if not good or entry.end - entry.begin != _product(sizes) * dtype.itemsize:
        where = f"at bytes {entry.begin} to {entry.end}"
        raise MalformedError(f"the tensor {name[:80]!r} of sizes {sizes[:8]} {where}")
    return entry


def _product(sizes: Sequence[int]) -> int:
    """Elements of a tensor.

    Raises:
        MalformedError: more than are counted in 64 bits, or would be without an extent of 0.

    """
    count = 1
    for n in sizes:
        count *= max(n, 1)
        if count >= 1 << 60:
            raise MalformedError(f"a tensor of sizes {list(sizes[:8])}")
    return 0 if 0 in sizes else count


def read(data: memoryview) -> dict[str, Tensor]:
    """The tensors of a safetensors file that lies in memory, on that memory.

    Raises:
        MalformedError: the file is not what the format wants.

    """
    head = head_size(bytes(data[:8]), len(data))
    found, start = entries(bytes(data[:head]), len(data))
    return {name: _tensor(data[start:], name, entry) for name, entry in found.items()}


def _tensor(body: memoryview, name: str, entry: Entry) -> Tensor:
    """One tensor of a file."""
    count = _product(entry.shape)
    if not count:
        return torch.empty(entry.shape, dtype=entry.dtype)
    flat = torch.frombuffer(body, dtype=entry.dtype, count=count, offset=entry.begin)
    if flat.data_ptr() % entry.dtype.itemsize:
        raise MalformedError(f"the tensor {name[:80]!r} at an address that is none of its type")
    return flat.view(entry.shape)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError("no size")
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
        raise MalformedError(
            f"a tensor on {at.memory[:80]!r} of sizes {at.shape[:8]}, {at.strides[:8]}"
        )
    if len(at.shape) > MOST_DIMS:
        raise MalformedError(f"a tensor on {at.memory[:80]!r} of {len(at.shape)} dims")
    last = at.offset + sum((n - 1) * s for n, s in zip(at.shape, at.strides, strict=True))
    if _product(at.shape) and last >= base.numel():
        raise MalformedError(f"a tensor that reaches beyond {at.memory!r}")
    if at.shape == tuple(base.shape) and at.strides == base.stride() and not at.offset:
        return base
    return base.reshape(-1).as_strided(at.shape, at.strides, int(base.storage_offset()) + at.offset)


def row_by_row(shape: Sequence[int]) -> list[int]:
    """The strides of a tensor that lies row by row, in elements."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return strides[::-1]


def is_within(tensor: Tensor) -> bool:
    """Whether a tensor has no more elements than memory: one that repeats some takes more as soon
    as it is copied, and a file may say so of any size.
    """
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


__all__ = [
    "Entry",
    "Placed",
    "Stored",
    "Zeros",
    "entries",
    "head_size",
    "header",
    "is_within",
    "parts",
    "place",
    "read",
    "row_by_row",
    "stored",
]
