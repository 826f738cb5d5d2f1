"""Lowerings of gathers, in-place writes by index, and argmax."""

from __future__ import annotations

from fuseline.codegen.gather import (
    ArgmaxKernel,
    EmbeddingKernel,
    IndexWriteKernel,
    argmax_scratch_bytes,
)
from fuseline.codegen.lower import (
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
from fuseline.codegen.lower_rows import FLOATS
from fuseline.codegen.shift_write import ShiftWriteKernel
from fuseline.ir.core import Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.buffer import IndexWrite, ShiftWrite
from fuseline.ir.ops.index import Embedding
from fuseline.ir.ops.reduce import Argmax
from fuseline.ir.types import Dim, DType, dim, product

INDEX_TYPES = (DType.I64, DType.I32)


@lowers(Embedding)
def lower_embedding(op: Embedding, layouts: LayoutMap) -> Lowered:
    """Rows of a table by index."""
    width = op.weight.shape[1]
    if not isinstance(width, int):
        return Refusal(f"table {op.weight.type}; the kernel needs a known width")
    if op.indices.dtype not in INDEX_TYPES:
        return Refusal(f"indices {op.indices.type}; the kernel takes i64 and i32")
    if need := not_dense([op.indices], layouts):
        return need
    table = layouts.layout(op.weight)
    if not table.is_inner_dense(op.weight.shape):
        return Refusal("the table's rows are not dense in memory")
    kernel = EmbeddingKernel(op.weight.dtype.value, width, op.indices.dtype.value)
    dims = (op.indices.tensor.numel, op.weight.shape[0], 1, table.strides[0], width)
    moved = dim(8 * op.y.tensor.nbytes)
    return [Launch(kernel, (op.indices, op.weight, op.y), dims, moved)]


@lowers(IndexWrite)
def lower_index_write(op: IndexWrite, layouts: LayoutMap) -> Lowered:
    """Slices of a buffer replaced in place."""
    if op.index.dtype not in INDEX_TYPES:
        return Refusal(f"index {op.index.type}; the kernel takes i64 and i32")
    if op.src.dtype is not op.buffer.dtype:
        return Refusal(f"{op.src.type} written into {op.buffer.type}")
    if need := not_dense([op.index], layouts):
        return need
    source = _levels(op.src, op.axis, layouts.layout(op.src))
    if source is None:
        return NeedDense((op.src,))
    into = _levels(op.buffer, op.axis, layouts.layout(op.buffer))
    if into is None or into[0] != source[0]:
        return Refusal(f"{op.src.type} written along axis {op.axis} of {op.buffer.type}")
    outer, inner, width = source[0]
    dims = (
        *(outer, inner, op.index.tensor.numel, width, op.buffer.shape[op.axis]),
        *source[1],
        *into[1],
    )
    kernel = IndexWriteKernel(op.src.dtype.value, op.index.dtype.value)
    return [Launch(kernel, (op.index, op.src, op.buffer), dims, work(op))]


@lowers(ShiftWrite)
def lower_shift_write(op: ShiftWrite, layouts: LayoutMap) -> Lowered:
    """A buffer moved on by some slices, in place."""
    if op.src.dtype is not op.buffer.dtype:
        return Refusal(f"{op.src.type} written into {op.buffer.type}")
    source = _levels(op.src, op.axis, layouts.layout(op.src))
    if source is None:
        return NeedDense((op.src,))
    into = _levels(op.buffer, op.axis, layouts.layout(op.buffer))
    if into is None or into[0] != source[0]:
        return Refusal(f"{op.src.type} written along axis {op.axis} of {op.buffer.type}")
    outer, inner, width = source[0]
    count = op.src.shape[op.axis]
    kept = dim(op.buffer.shape[op.axis] - count)
    dims = (outer, inner, count, kept, width, *source[1], *into[1])
    return [Launch(ShiftWriteKernel(op.src.dtype.value), (op.src, op.buffer), dims, work(op))]


def _levels(
    value: Value, axis: int, layout: Layout
) -> tuple[tuple[Dim, Dim, Dim], tuple[Dim, Dim, Dim]] | None:
    """The value as ``[outer, inner, slices, width]``: extents (but the slices') and strides.

    None where the dims behind the axis are not dense, or those before it need three strides.
    """
    shape, strides = value.shape, layout.strides
    tail = Layout(0, strides[axis + 1 :])
    if not tail.is_dense(shape[axis + 1 :]):
        return None
    lead = list(zip(shape[:axis], strides[:axis], strict=True))
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
