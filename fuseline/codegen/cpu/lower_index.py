"""Lowerings of gathers, in-place writes by index, and argmax."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fuseline.codegen.cpu.gather import (
    ArgmaxKernel,
    GatherKernel,
    IndexWriteKernel,
    argmax_scratch_bytes,
)
from fuseline.codegen.cpu.lower_pointwise import copied
from fuseline.codegen.cpu.shift_write import ShiftWriteKernel
from fuseline.codegen.lower import (
    FLOATS,
    WORKERS,
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    Scratch,
    lowers,
    not_dense,
    work,
)
from fuseline.ir.core import Op, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.buffer import IndexWrite, ShiftWrite
from fuseline.ir.ops.index import Embedding, Gather, Index, IndexCopy, IndexSelect
from fuseline.ir.ops.reduce import Argmax
from fuseline.ir.types import Dim, DType, dim, product, same

INDEX_TYPES = (DType.I64, DType.I32)


@lowers(Embedding)
def lower_embedding(op: Embedding, layouts: LayoutMap) -> Lowered:
    """Rows of a table by index."""
    return _gathered(op, op.weight, op.y, {0: op.indices}, 0, layouts, wraps=False)


@lowers(Index)
def lower_index(op: Index, layouts: LayoutMap) -> Lowered:
    """Slices by indices along any axes; where those are not adjacent, the index dims come first."""
    by_axis = dict(zip(op.axes, op.indices, strict=True))
    return _gathered(op, op.x, op.y, by_axis, op.place, layouts, wraps=True)


@lowers(IndexSelect)
def lower_index_select(op: IndexSelect, layouts: LayoutMap) -> Lowered:
    """Slices by one index."""
    if not op.index.shape:
        return Refusal("the index is a single number")
    return _gathered(op, op.x, op.y, {op.axis: op.index}, op.axis, layouts, wraps=False)


@lowers(Gather)
def lower_gather(op: Gather, layouts: LayoutMap) -> Lowered:
    """Elements by an index as wide as the result, which moves along the other axes of x too."""
    strides = list(layouts.layout(op.x).strides)
    step, strides[op.axis] = strides[op.axis], 0
    axis = _Axis(op.index, layouts.layout(op.index).strides, op.x.shape[op.axis], step)
    return _launch(op, op.x, op.y, strides, [axis], wraps=False)


@dataclass(frozen=True)
class _Axis:
    """An axis of x that an index tells the place on; ``strides`` is one for each result dim."""

    index: Value
    strides: Sequence[Dim]
    size: Dim
    step: Dim


def _gathered(
    op: Op,
    x: Value,
    y: Value,
    indices: Mapping[int, Value],
    place: int,
    layouts: LayoutMap,
    *,
    wraps: bool,
) -> Lowered:
    """Indices by axis, whose broadcast dims stand from ``place`` on in the result."""
    layout = layouts.layout(x)
    rank = y.tensor.rank
    selected = rank - (x.tensor.rank - len(indices))
    strides: list[Dim] = [s for a, s in enumerate(layout.strides) if a not in indices]
    strides[place:place] = [0] * selected
    axes: list[_Axis] = []
    for axis, index in indices.items():
        walk = list(layouts.layout(index).strides)
        walk = [0 if e == 1 else s for e, s in zip(index.shape, walk, strict=True)]
        walk = [0] * (place + selected - len(walk)) + walk
        walk += [0] * (rank - len(walk))
        axes.append(_Axis(index, walk, x.shape[axis], layout.strides[axis]))
    return _launch(op, x, y, strides, axes, wraps=wraps)


def _launch(
    op: Op, x: Value, y: Value, strides: Sequence[Dim], axes: Sequence[_Axis], *, wraps: bool
) -> Lowered:
    for axis in axes:
        if axis.index.dtype not in INDEX_TYPES:
            return Refusal(f"index {axis.index.type}; the kernel takes i64 and i32")
    # each dim as its extent, and its strides in x and in the indices
    walks = list(zip(y.shape, strides, *(axis.strides for axis in axes), strict=True))
    walks = [walk for walk in walks if walk[0] != 1]
    width: Dim = 1
    while walks and same(walks[-1][1], width) and all(s == 0 for s in walks[-1][2:]):
        width = dim(width * walks.pop()[0])
    merged: list[tuple[Dim, ...]] = []
    for extent, *steps in walks:
        outer = merged[-1] if merged else (0,)
        if merged and all(same(dim(extent * s), o) for s, o in zip(steps, outer[1:], strict=True)):
            merged[-1] = (dim(outer[0] * extent), *steps)
        else:
            merged.append((extent, *steps))
    merged = merged or [(1, *[0] * (1 + len(axes)))]
    kernel = GatherKernel(
        x.dtype.value, tuple(a.index.dtype.value for a in axes), len(merged), wraps
    )
    ends = [d for axis in axes for d in (axis.size, axis.step)]
    dims = (*itertools.chain.from_iterable(zip(*merged, strict=True)), *ends, width)
    buffers = (*(axis.index for axis in axes), x, y)
    return [Launch(kernel, buffers, dims, dim(8 * y.tensor.nbytes))]


@lowers(IndexWrite)
def lower_index_write(op: IndexWrite, layouts: LayoutMap) -> Lowered:
    """Slices of a buffer replaced in place."""
    if op.src.dtype is not op.buffer.dtype:
        return Refusal(f"{op.src.type} written into {op.buffer.type}")
    origin = op.origin or (0,) * op.src.tensor.rank
    place = layouts.layout(op.buffer)
    at = dim(sum(start * step for start, step in zip(origin, place.strides, strict=True)))
    return _index_write(op, op.buffer, at, layouts)


@lowers(IndexCopy)
def lower_index_copy(op: IndexCopy, layouts: LayoutMap) -> Lowered:
    """A copy of the whole, or the number that all of it is, and slices of that replaced."""
    if op.x.dtype is not op.src.dtype:
        return Refusal(f"{op.src.type} put into {op.x.type}")
    whole = copied(op.x, op.y, layouts)
    if isinstance(whole, Refusal):
        return whole
    slices = _index_write(op, op.y, 0, layouts)
    return slices if isinstance(slices, (NeedDense, Refusal)) else [*whole, *slices]


def _index_write(op: IndexWrite | IndexCopy, target: Value, at: Dim, layouts: LayoutMap) -> Lowered:
    """Slices of what begins at element ``at`` of the target."""
    if op.index.dtype not in INDEX_TYPES:
        return Refusal(f"index {op.index.type}; the kernel takes i64 and i32")
    if need := not_dense([op.index], layouts):
        return need
    source = _levels(op.src.shape, op.axis, layouts.layout(op.src))
    if source is None:
        return NeedDense((op.src,))
    into = _levels(op.src.shape, op.axis, layouts.layout(target))
    if into is None or into[0] != source[0]:
        return Refusal(f"{op.src.type} written along axis {op.axis} of {target.type}")
    outer, inner, width = source[0]
    rows = target.shape[op.axis]
    dims = (outer, inner, op.index.tensor.numel, width, rows, *source[1], *into[1], at)
    kernel = IndexWriteKernel(op.src.dtype.value, op.index.dtype.value)
    moved = dim(8 * op.src.tensor.nbytes)
    return [Launch(kernel, (op.index, op.src, target), dims, moved)]


@lowers(ShiftWrite)
def lower_shift_write(op: ShiftWrite, layouts: LayoutMap) -> Lowered:
    """A buffer moved on by some slices, in place."""
    if op.src.dtype is not op.buffer.dtype:
        return Refusal(f"{op.src.type} written into {op.buffer.type}")
    source = _levels(op.src.shape, op.axis, layouts.layout(op.src))
    if source is None:
        return NeedDense((op.src,))
    into = _levels(op.buffer.shape, op.axis, layouts.layout(op.buffer))
    if into is None or into[0] != source[0]:
        return Refusal(f"{op.src.type} written along axis {op.axis} of {op.buffer.type}")
    outer, inner, width = source[0]
    count = op.src.shape[op.axis]
    kept = dim(op.buffer.shape[op.axis] - count)
    dims = (outer, inner, count, kept, width, *source[1], *into[1])
    return [Launch(ShiftWriteKernel(op.src.dtype.value), (op.src, op.buffer), dims, work(op))]


def _levels(
    shape: Sequence[Dim], axis: int, layout: Layout
) -> tuple[tuple[Dim, Dim, Dim], tuple[Dim, Dim, Dim]] | None:
    """Some elements as ``[outer, inner, slices, width]``: extents (but the slices') and strides.

    None where the dims behind the axis are not dense, or those before it need three strides.
    """
    strides = layout.strides
    tail = Layout(0, strides[axis + 1 :])
    if not tail.is_dense(shape[axis + 1 :]):
        return None
    lead = [(e, s) for e, s in zip(shape[:axis], strides[:axis], strict=True) if e != 1]
    while len(lead) > 2 and dim(lead[-1][0] * lead[-1][1]) == lead[-2][1]:
        (extent, _), (last, stride) = lead[-2:]
        lead[-2:] = [(dim(extent * last), stride)]
    if len(lead) > 2:
        return None
    (outer, outer_step), (inner, inner_step) = [(1, 0)] * (2 - len(lead)) + lead
    width = product(shape[axis + 1 :])
    return (outer, inner, width), (outer_step, inner_step, strides[axis])


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
