"""Lowerings of gathers, in-place writes by index, and argmax."""

from __future__ import annotations

import itertools

from fuseline.codegen.cpu.gather import (
    ArgmaxKernel,
    GatherKernel,
    IndexWriteKernel,
    argmax_scratch_bytes,
)
from fuseline.codegen.cpu.lower_pointwise import launches
from fuseline.codegen.cpu.shift_write import ShiftWriteKernel
from fuseline.codegen.indexing import (
    GatherOp,
    Slices,
    gathered,
    index_written,
    shift_written,
)
from fuseline.codegen.lower import (
    FLOATS,
    WORKERS,
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
from fuseline.ir.types import dim, product


@lowers(Embedding, Index, IndexSelect, Gather)
def lower_gather(op: GatherOp, layouts: LayoutMap) -> Lowered:
    """Rows or elements by index."""
    found = gathered(op, layouts)
    if isinstance(found, Refusal):
        return found
    types = tuple(axis.index.dtype.value for axis in found.axes)
    kernel = GatherKernel(found.x.dtype.value, types, len(found.walks), found.wraps)
    ends = [d for axis in found.axes for d in (axis.size, axis.step)]
    walks = itertools.chain.from_iterable(zip(*found.walks, strict=True))
    dims = (*walks, *ends, found.width)
    buffers = (*(axis.index for axis in found.axes), found.x, found.y)
    return [Launch(kernel, buffers, dims, dim(8 * found.y.tensor.nbytes))]


@lowers(IndexWrite)
def lower_index_write(op: IndexWrite, layouts: LayoutMap) -> Lowered:
    """Slices of a buffer replaced in place."""
    found = index_written(op, layouts)
    return [_write(op, found)] if isinstance(found, Slices) else found


@lowers(IndexCopy)
def lower_index_copy(op: IndexCopy, layouts: LayoutMap) -> Lowered:
    """A copy of the whole, or the number that all of it is, and slices of that replaced."""
    found = index_written(op, layouts)
    if not isinstance(found, Slices):
        return found
    whole = launches(copied(op.x, op.y, layouts))
    return whole if isinstance(whole, Refusal) else [*whole, _write(op, found)]


def _write(op: IndexWrite | IndexCopy, found: Slices) -> Launch:
    target = op.buffer if isinstance(op, IndexWrite) else op.y
    rows, slices = target.shape[op.axis], op.index.tensor.numel
    counts = (found.outer, found.inner, slices, found.width, rows)
    kernel = IndexWriteKernel(op.src.dtype.value, op.index.dtype.value)
    dims = (*counts, *found.source, *found.target, found.at)
    return Launch(kernel, (op.index, op.src, target), dims, dim(8 * op.src.tensor.nbytes))


@lowers(ShiftWrite)
def lower_shift_write(op: ShiftWrite, layouts: LayoutMap) -> Lowered:
    """A buffer moved on by some slices, in place."""
    found = shift_written(op, layouts)
    if not isinstance(found, Slices):
        return found
    count = op.src.shape[op.axis]
    kept = dim(op.buffer.shape[op.axis] - count)
    counts = (found.outer, found.inner, count, kept, found.width)
    dims = (*counts, *found.source, *found.target)
    return [Launch(ShiftWriteKernel(op.src.dtype.value), (op.src, op.buffer), dims, work(op))]


@lowers(Argmax)
def lower_argmax(op: Argmax, layouts: LayoutMap) -> Lowered:
    """The index of the largest element of each row."""
    if op.x.dtype not in FLOATS:
        return Refusal(f"x {op.x.type}; the kernel takes f32, bf16 and f16")
    if op.axis != op.x.tensor.rank - 1:
        return Refusal(f"axis {op.axis} of {op.x.type}; the kernel takes the last one")
    step = layouts.layout(op.x).row_stride(op.x.shape)
    if step is None:
        return NeedDense((op.x,))
    rows = product(op.x.shape[:-1])
    scratch = Scratch(dim(argmax_scratch_bytes(0, 0) + 16 * rows * WORKERS))
    kernel = ArgmaxKernel(op.x.dtype.value)
    dims = (rows, op.x.shape[-1], step)
    return [Launch(k, (op.x, op.y, scratch), dims, work(op)) for k in kernel.launches()]
