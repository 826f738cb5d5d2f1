"""Lowerings of gathers, in-place writes by index, and argmax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fuseline.codegen.forms import When
from fuseline.codegen.gpu.gather import (
    ArgmaxJoinKernel,
    ArgmaxKernel,
    GatherKernel,
    IndexLastKernel,
    IndexWriteKernel,
    Looked,
    ShiftWriteKernel,
)
from fuseline.codegen.gpu.kernel import ceil_div, launch, next_power_of_two
from fuseline.codegen.gpu.places import Places
from fuseline.codegen.gpu.pointwise import Tile
from fuseline.codegen.gpu.region_plan import configured, launches
from fuseline.codegen.gpu.tiles import Choice, element_tiles, one_tile
from fuseline.codegen.indexing import (
    Gathered,
    GatherOp,
    Slices,
    gathered,
    index_written,
    shift_written,
)
from fuseline.codegen.lower import (
    FLOATS,
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    Scratch,
    lowers,
    work,
)
from fuseline.codegen.points import copied
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.buffer import IndexWrite, ShiftWrite
from fuseline.ir.ops.index import Embedding, Gather, Index, IndexCopy, IndexSelect
from fuseline.ir.ops.reduce import Argmax
from fuseline.ir.types import Dim, dim, product

ARGMAX_PART = 2048
"""Elements of a row that one block looks through: 75 blocks for a vocabulary of 152 thousand."""

SHORT = 4096
"""A row of up to so many elements has one block, and no second launch."""

SHIFT_ROWS = 16
"""Slices of a window that a block has in flight."""


@lowers(Embedding, Index, IndexSelect, Gather, backend="cuda")
def lower_gather(op: GatherOp, layouts: LayoutMap) -> Lowered:
    """Rows or elements by index; an index outside gives zeros."""
    found = gathered(op, layouts)
    if isinstance(found, Refusal):
        return found
    outer = [walk[0] for walk in found.walks]
    tiles = element_tiles(outer, found.width, 16 // found.x.dtype.itemsize)
    return [_gather(found, choice, layouts) for choice in tiles]


def _gather(found: Gathered, choice: Choice, layouts: LayoutMap) -> Launch:
    places = Places(choice.tile, [walk[0] for walk in found.walks], found.width)
    indices = tuple(
        Looked(
            axis.index.dtype.value,
            _place(places, f"index_{j}", [walk[j + 2] for walk in found.walks]),
            places.number(f"size_{j}", axis.size),
            places.number(f"step_{j}", axis.step),
        )
        for j, axis in enumerate(found.axes)
    )
    source = _place(places, "x", [walk[1] for walk in found.walks])
    kernel = GatherKernel(
        dtype=found.x.dtype.value,
        indices=indices,
        source=source,
        width=places.extent,
        wraps=found.wraps,
        **_tile(places),
    )
    buffers = (*(axis.index for axis in found.axes), found.x, found.y)
    return configured(kernel, buffers, places, choice, layouts, dim(8 * found.y.tensor.nbytes))


def _place(places: Places, name: str, strides: Sequence[Dim]) -> str:
    """Where a row begins: one term for each axis that it moves along."""
    terms = [places.times(f"i{k}", f"{name}_{k}", stride) for k, stride in enumerate(strides)]
    return "(" + " + ".join([t for t in terms if t] or ["row_R.to(tl.int64) * 0"]) + ")"


def _tile(places: Places) -> dict[str, Any]:
    """The fields that kernels over tiles have in common; to be asked for behind all numbers."""
    columns, start = tuple(places.columns()), tuple(places.start())
    return {
        "numbers": tuple(places.types.items()),
        "tile": places.tile,
        "start": start,
        "columns": columns,
        "row_mask": places.mask(columns=False) or "None",
        "mask": places.mask() or "None",
    }


@lowers(IndexWrite, backend="cuda")
def lower_index_write(op: IndexWrite, layouts: LayoutMap) -> Lowered:
    """Slices of a buffer replaced in place; those with an index outside are left out."""
    found = index_written(op, layouts)
    return _writes(op, found, layouts) if isinstance(found, Slices) else found


@lowers(IndexCopy, backend="cuda")
def lower_index_copy(op: IndexCopy, layouts: LayoutMap) -> Lowered:
    """A copy of the whole, or the number that all of it is, and slices of that replaced."""
    found = index_written(op, layouts)
    if not isinstance(found, Slices):
        return found
    whole = launches(copied(op.x, op.y, layouts), layouts)
    return whole if isinstance(whole, Refusal) else [*whole, *_writes(op, found, layouts)]


def _writes(op: IndexWrite | IndexCopy, found: Slices, layouts: LayoutMap) -> list[Launch]:
    """One slice is written as it is; of several, those that another follows are left out."""
    count = op.index.tensor.numel
    one: When = None if isinstance(count, int) else (count, 0, 1)
    several: When = None if isinstance(count, int) else (count, 2, None)
    made: list[Launch] = []
    if not isinstance(count, int) or count <= 1:
        made.append(_write(op, found, layouts, one, flagged=False))
    if not isinstance(count, int) or count > 1:
        kernel = IndexLastKernel(op.index.dtype.value)
        buffers = (op.index, Scratch(count))
        grid = (ceil_div(count, kernel.block),)
        flags = launch(kernel, buffers, {"slices": count}, grid, layouts, count, when=several)
        made += [flags, _write(op, found, layouts, several, flagged=True)]
    return made


def _write(
    op: IndexWrite | IndexCopy, found: Slices, layouts: LayoutMap, when: When, *, flagged: bool
) -> Launch:
    target = op.buffer if isinstance(op, IndexWrite) else op.y
    count = op.index.tensor.numel
    outer = [found.outer, found.inner, count]
    choice = one_tile(outer, found.width, 16 // op.src.dtype.itemsize, many=flagged)
    places = Places(choice.tile, outer, found.width)
    at = places.number("at", found.at)
    kernel = IndexWriteKernel(
        dtype=op.src.dtype.value,
        index=op.index.dtype.value,
        looked="i2",
        source=_place(places, "src", found.source),
        target=f"{at} + {_place(places, 'into', found.target[:2])}",
        step=places.number("into_2", found.target[2]),
        rows=places.number("size", target.shape[op.axis]),
        flagged=flagged,
        **_tile(places),
    )
    flags = [Scratch(count)] * flagged
    buffers = (op.index, *flags, op.src, target)
    moved = dim(8 * op.src.tensor.nbytes)
    made = configured(kernel, buffers, places, choice, layouts, moved)
    return dataclasses.replace(made, when=when)


@lowers(ShiftWrite, backend="cuda")
def lower_shift_write(op: ShiftWrite, layouts: LayoutMap) -> Lowered:
    """A buffer moved on by some slices, in place."""
    found = shift_written(op, layouts)
    if not isinstance(found, Slices):
        return found
    count, width = op.src.shape[op.axis], found.width
    lanes = 32 * 16 // op.src.dtype.itemsize
    block = min(lanes, next_power_of_two(width)) if isinstance(width, int) else lanes
    places, along = Places(Tile(1, block, "none"), [], width), ceil_div(width, block)
    kernel = ShiftWriteKernel(
        dtype=op.src.dtype.value,
        width=places.extent,
        inner=places.number("inner", found.inner, "i32"),
        count=places.number("count", count),
        kept=places.number("kept", dim(op.buffer.shape[op.axis] - count)),
        source=_three(places, "src", found.source),
        target=_three(places, "into", found.target),
        block=block,
        block_rows=SHIFT_ROWS,
        along=places.number("along", along, "i32"),
        numbers=tuple(places.types.items()),
        stages=1,
    )
    grid = (product([found.outer, found.inner, along]),)
    return [launch(kernel, (op.src, op.buffer), places.values, grid, layouts, work(op))]


def _three(places: Places, name: str, strides: tuple[Dim, Dim, Dim]) -> tuple[str, str, str]:
    a, b, c = (places.number(f"{name}_{axis}", s) for axis, s in zip("ois", strides, strict=True))
    return a, b, c


@lowers(Argmax, backend="cuda")
def lower_argmax(op: Argmax, layouts: LayoutMap) -> Lowered:
    """The index of the largest element of each row; long rows by parts, then the best of those."""
    if op.x.dtype not in FLOATS:
        return Refusal(f"x {op.x.type}; the kernel takes f32, bf16 and f16")
    if op.axis != op.x.tensor.rank - 1:
        return Refusal(f"axis {op.axis} of {op.x.type}; the kernel takes the last one")
    step = layouts.layout(op.x).row_stride(op.x.shape)
    if step is None:
        return NeedDense((op.x,))
    width, rows = op.x.shape[-1], product(op.x.shape[:-1])
    short = isinstance(width, int) and width <= SHORT
    part = next_power_of_two(width) if isinstance(width, int) and short else ARGMAX_PART
    places, parts = Places(Tile(1, part, "none"), [], width), ceil_div(width, part)
    kernel = ArgmaxKernel(
        dtype=op.x.dtype.value,
        width=places.number("width", width),
        step=places.number("step", step),
        part=part,
        block=min(part, 1024),
        joined=not short,
        parts=places.number("parts", parts, "i32"),
        numbers=tuple(places.types.items()),
    )
    scratch = Scratch(dim(8 * rows * parts))
    grid = (dim(rows * parts),)
    buffers = (op.x, op.y if short else scratch)
    made = [launch(kernel, buffers, places.values, grid, layouts, work(op))]
    if not short:
        join = ArgmaxJoinKernel(warps=1)
        buffers = (scratch, op.y)
        made.append(launch(join, buffers, {"parts": parts}, (rows,), layouts, dim(8 * rows)))
    return made
