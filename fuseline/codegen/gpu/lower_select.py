"""Lowerings of top-k and of running sums."""

from __future__ import annotations

from fuseline.codegen.gpu.kernel import ceil_div, launch, next_power_of_two
from fuseline.codegen.gpu.places import Places
from fuseline.codegen.gpu.pointwise import Tile
from fuseline.codegen.gpu.select import CumsumKernel, TopKKernel
from fuseline.codegen.library import LibraryKernel
from fuseline.codegen.lower import Launch, Lowered, NeedDense, Refusal, lowers, work
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.reduce import Cumsum, TopK
from fuseline.ir.types import Dim, DType, dim, product

WIDEST = 2048
"""Elements of a row that a block holds, each with its index in 64 bits."""

MOST = 32
"""Elements that are taken one after the other; of more, torch's library sorts."""

WIDE = (DType.F64, DType.I64)
"""Types that do not fit into 64 bits beside an index."""

BLOCK_ELEMENTS = 1024
"""Elements of a block of top-k, where rows are shorter."""


@lowers(TopK, backend="cuda")
def lower_topk(op: TopK, layouts: LayoutMap) -> Lowered:
    """The largest elements of each row: a few of short rows here, others by torch's library."""
    if op.x.dtype is DType.BOOL:
        return Refusal(f"x {op.x.type}; the kernel takes numbers")
    width, k = op.x.shape[-1], op.k
    step = layouts.layout(op.x).row_stride(op.x.shape)
    if step is None or op.axis != op.x.tensor.rank - 1 or op.x.dtype in WIDE:
        return [_library(op)]
    if not isinstance(width, int) or not isinstance(k, int) or width > WIDEST:
        return [_library(op)]
    if not 0 < k <= min(MOST, width):
        return [_library(op)]
    rows = product(op.x.shape[:-1])
    block = next_power_of_two(width)
    places = Places(Tile(1, block, "none"), [], width)
    kernel = TopKKernel(
        dtype=op.x.dtype.value,
        width=width,
        k=k,
        step=places.number("step", step),
        rows=places.number("rows", rows, "i32"),
        block_rows=max(1, min(8, BLOCK_ELEMENTS // block)),
        block=block,
        largest=op.largest,
        numbers=tuple(places.types.items()),
    )
    grid = (ceil_div(rows, kernel.block_rows),)
    buffers = (op.x, op.values, op.indices)
    return [launch(kernel, buffers, places.values, grid, layouts, work(op))]


def _library(op: TopK) -> Launch:
    attributes = (("axis", op.axis), ("largest", op.largest), ("ordered", op.ordered))
    kernel = LibraryKernel("topk", 2, attributes)
    return Launch(kernel, (op.x, op.values, op.indices), (), work(op))


@lowers(Cumsum, backend="cuda")
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
    length = shape[op.axis]
    rows, most = (1, 1024) if inner == 1 else (32, 32)
    block = min(most, next_power_of_two(length)) if isinstance(length, int) else most
    lines = dim(outer * inner)
    places = Places(Tile(rows, block), [], length)
    kernel = CumsumKernel(
        dtype=op.x.dtype.value,
        lines=places.number("lines", lines, "i32"),
        inner=places.number("inner", inner, "i32"),
        length=places.extent,
        outer_step=places.number("x_o", outer_step),
        inner_step=places.number("x_i", inner_step),
        step=places.number("x_j", strides[op.axis]),
        block_rows=rows,
        block=block,
        numbers=tuple(places.types.items()),
    )
    grid = (ceil_div(lines, rows),)
    return [launch(kernel, (op.x, op.y), places.values, grid, layouts, work(op))]


def _one_stride(shape: tuple[Dim, ...], strides: tuple[Dim, ...]) -> tuple[Dim, Dim] | None:
    """The dims as one: its extent and stride; None where they need more than one."""
    step = Layout(0, (*strides, 1)).row_stride((*shape, 1))
    return None if step is None else (product(shape), step)
