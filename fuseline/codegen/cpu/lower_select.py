"""Lowerings of top-k and of running sums."""

from __future__ import annotations

from fuseline.codegen.cpu.cumsum import CumsumKernel
from fuseline.codegen.cpu.topk import ITEM_BYTES, TopKKernel
from fuseline.codegen.lower import (
    WORKERS,
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    Scratch,
    lowers,
    work,
)
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.reduce import Cumsum, TopK
from fuseline.ir.types import Dim, DType, dim, product

ELEMENT_WORK = 64
"""Work of one element of a row that the largest are selected of."""


@lowers(TopK)
def lower_topk(op: TopK, layouts: LayoutMap) -> Lowered:
    """The largest elements of each row."""
    rank = op.x.tensor.rank
    if op.axis != rank - 1:
        return Refusal(f"axis {op.axis} of {op.x.type}; the kernel takes the last one")
    if op.x.dtype is DType.BOOL:
        return Refusal(f"x {op.x.type}; the kernel takes numbers")
    step = layouts.layout(op.x).row_stride(op.x.shape)
    if step is None:
        return NeedDense((op.x,))
    width = op.x.shape[-1]
    kernel = TopKKernel(op.x.dtype.value, op.largest, op.ordered)
    dims = (product(op.x.shape[:-1]), width, op.k, step)
    scratch = Scratch(dim(ITEM_BYTES * width * WORKERS))
    buffers = (op.x, op.values, op.indices, scratch)
    return [Launch(kernel, buffers, dims, dim(ELEMENT_WORK * op.x.tensor.numel))]


@lowers(Cumsum)
def lower_cumsum(op: Cumsum, layouts: LayoutMap) -> Lowered:
    """Running sums along any axis."""
    if not op.x.tensor.rank:
        return Refusal("x is a single number")
    shape, strides = op.x.shape, layouts.layout(op.x).strides
    before = _one_stride(shape[: op.axis], strides[: op.axis])
    behind = _one_stride(shape[op.axis + 1 :], strides[op.axis + 1 :])
    if before is None or behind is None:
        return NeedDense((op.x,))
    (outer, outer_step), (inner, inner_step) = before, behind
    dims = (outer, inner, shape[op.axis], outer_step, inner_step, strides[op.axis])
    return [Launch(CumsumKernel(op.x.dtype.value), (op.x, op.y), dims, work(op))]


def _one_stride(shape: tuple[Dim, ...], strides: tuple[Dim, ...]) -> tuple[Dim, Dim] | None:
    """The dims as one: its extent and stride; None where they need more than one."""
    step = Layout(0, (*strides, 1)).row_stride((*shape, 1))
    return None if step is None else (product(shape), step)
