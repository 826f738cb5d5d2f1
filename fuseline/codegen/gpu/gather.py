"""Kernels that move rows by index, and the index of the largest element, in Triton.

An index outside is neither read nor written by: a gathered row is then of zeros, a slice is left
out. (Eager stops the device there.)
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.gpu.pointwise import Tile

LARGEST_INDEX = 0x7FFFFFFF
"""Elements of a row are numbered from here downwards, so that of equal ones the first counts."""


@dataclass(frozen=True)
class TileKernel(TritonKernel):
    """Base of the kernels over tiles of rows, whose integers are known at run time or baked in.

    Attributes:
        numbers: name and type of each integer.
        tile: how blocks share the rows.
        start: the statements that tell where a block is.
        columns: those that tell where its elements are along the rows.
        row_mask: the mask of a row, ``None`` where none is needed.
        mask: that of an element.

    """

    numbers: tuple[tuple[str, str], ...]
    tile: Tile
    start: tuple[str, ...]
    columns: tuple[str, ...]
    row_mask: str
    mask: str

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return self.numbers


@dataclass(frozen=True)
class Looked:
    """An index: where a row finds it, the extent of its axis and the stride along that, as text."""

    type: str
    place: str
    size: str
    step: str


@dataclass(frozen=True)
class GatherKernel(TileKernel, template="triton/gather.py.jinja"):
    """``y[p] = x[p x_strides + sum of wrapped(index_j[p index_strides_j]) * step_j]``, by rows.

    p are the rows of a tile, whose elements lie side by side in x and in y, which is dense.

    Attributes:
        dtype: of the elements, which are only moved.
        indices: how each is looked up.
        source: where the row would begin in x without the indices.
        width: elements of a row.
        wraps: whether negative indices count from the end.

    """

    varies = ""
    per_element = True

    dtype: str
    indices: tuple[Looked, ...]
    source: str
    width: str
    wraps: bool

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        found = ((f"index_{j}", index.type) for j, index in enumerate(self.indices))
        return (*found, ("x", self.dtype), ("y", self.dtype))

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Rows of {self.dtype} by {' and '.join(index.type for index in self.indices)}"


@dataclass(frozen=True)
class IndexWriteKernel(TileKernel, template="triton/index_write.py.jinja"):
    """``into[o, i, index[s], :] = src[o, i, s, :]``; a tile is over all (o, i, s) and the rest.

    With ``flagged``, only those s are written that `IndexLastKernel` has marked.

    Attributes:
        dtype: of the elements.
        index: of the index.
        looked: where a row finds its index.
        source: where it begins in src.
        target: where the slices begin that it goes to.
        step: from one of these to the next.
        rows: how many there are.
        flagged: see above; the buffer ``last`` is then behind the index.

    """

    varies = ""
    per_element = True

    dtype: str
    index: str
    looked: str
    source: str
    target: str
    step: str
    rows: str
    flagged: bool = False

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        flags = [("last", "u8")] * self.flagged
        return (("index", self.index), *flags, ("src", self.dtype), ("into", self.dtype))

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Write slices of {self.dtype} by {self.index}"


@dataclass(frozen=True)
class IndexLastKernel(TritonKernel, template="triton/index_last.py.jinja"):
    """``last[s] = index[s]`` does not occur again behind s; a block takes ``block`` of them.

    The index is dense. Without flags, blocks would write equal places in any order.
    """

    varies = ""
    per_element = True

    index: str
    block: int = 32
    others: int = 64

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("index", self.index), ("last", "u8"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("slices", "i32"),)


@dataclass(frozen=True)
class ShiftWriteKernel(TritonKernel, template="triton/shift_write.py.jinja"):
    """``into[o, i, :kept] = into[o, i, count:]``, then ``into[o, i, kept:] = src[o, i, :count]``.

    A block moves ``block`` elements of every slice of one (o, i), ``block_rows`` slices at a time
    in rising order; each time all are read before one is written.

    Attributes:
        dtype: of the elements.
        numbers: name and type of each integer.
        width: elements of a slice; the other texts are extents and strides too.
        inner: see ``width``.
        count: see ``width``.
        kept: see ``width``.
        source: strides of o, i and slices in src.
        target: strides of o, i and slices in the buffer.
        block: see above.
        block_rows: see above.
        along: blocks that share a slice.

    """

    varies = ""
    per_element = True

    dtype: str
    numbers: tuple[tuple[str, str], ...]
    width: str
    inner: str
    count: str
    kept: str
    source: tuple[str, str, str]
    target: tuple[str, str, str]
    block: int
    block_rows: int
    along: str

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("src", self.dtype), ("into", self.dtype))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return self.numbers

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Move a window of {self.dtype} on"


@dataclass(frozen=True)
class ArgmaxKernel(TritonKernel, template="triton/argmax.py.jinja"):
    """``y[r] = argmax(x[r, :width])``, or the best of each part of a row for `ArgmaxJoinKernel`.

    The first among equals; the first NaN where there is one. Grid (rows * parts of a row,).

    Attributes:
        dtype: of x: f32, bf16 or f16.
        numbers: name and type of each integer.
        width: elements of a row.
        step: from one row to the next.
        part: elements that a block looks through, ``block`` at a time.
        block: see ``part``.
        joined: whether there may be several parts.
        parts: how many there are.

    """

    varies = ""
    per_element = True

    dtype: str
    numbers: tuple[tuple[str, str], ...]
    width: str
    step: str
    part: int
    block: int
    joined: bool
    parts: str

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("x", self.dtype), ("found", "u8") if self.joined else ("y", "i64"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return self.numbers

    @property
    def largest_index(self) -> int:
        """What indices are subtracted from."""
        return LARGEST_INDEX


@dataclass(frozen=True)
class ArgmaxJoinKernel(TritonKernel, template="triton/argmax_join.py.jinja"):
    """The best of the parts that `ArgmaxKernel` found for each row; grid (rows,)."""

    varies = ""
    per_element = True

    block: int = 256

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("found", "u8"), ("y", "i64"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("parts", "i32"),)

    @property
    def largest_index(self) -> int:
        """What indices are subtracted from."""
        return LARGEST_INDEX


__all__ = [
    "ArgmaxJoinKernel",
    "ArgmaxKernel",
    "GatherKernel",
    "IndexLastKernel",
    "IndexWriteKernel",
    "Looked",
    "ShiftWriteKernel",
]
