"""Lowerings onto the row kernels."""

from __future__ import annotations

import dataclasses

from fuseline.codegen.gpu.kernel import ceil_div, launch
from fuseline.codegen.gpu.norm import WIDEST, RowNormKernel
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers, work
from fuseline.codegen.norms import NormOperands, norm_operands
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import AddRmsNorm
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.types import Dim, dim, same

FEW_ROWS = 512
"""Up to so many narrow rows, each has a block of its own: more blocks than there is room for."""

BLOCK_ELEMENTS = 2048
"""Elements that a block takes of more rows than that, at least."""


@lowers(RmsNorm, LayerNorm, AddRmsNorm, backend="cuda")
def lower_norm(op: RmsNorm | LayerNorm | AddRmsNorm, layouts: LayoutMap) -> Lowered:
    """A norm over the last dim, with the residual add before it where there is one."""
    found = norm_operands(op, layouts)
    if not isinstance(found, NormOperands):
        return found
    if found.norm.width > WIDEST:
        return Refusal(f"rows of {found.norm.width} elements; the kernel takes up to {WIDEST}")
    rows = dim(found.rows.outer * found.rows.inner)
    kernel = RowNormKernel(**dataclasses.asdict(found.norm), flat=same(found.rows.outer, 1))
    several = max(1, BLOCK_ELEMENTS // kernel.block)
    if several == 1:
        return [_launch(op, found, kernel, rows, layouts)]
    few, many = (rows, 0, FEW_ROWS), (rows, FEW_ROWS + 1, None)
    grouped = dataclasses.replace(kernel, block_rows=several)
    return [
        dataclasses.replace(_launch(op, found, kernel, rows, layouts), when=few),
        dataclasses.replace(_launch(op, found, grouped, rows, layouts), when=many),
    ]


def _launch(
    op: RmsNorm | LayerNorm | AddRmsNorm,
    found: NormOperands,
    kernel: RowNormKernel,
    rows: Dim,
    layouts: LayoutMap,
) -> Launch:
    """The launch of a kernel, with 8 elements a thread first, then with 4 and 16."""
    elements = kernel.block * kernel.block_rows
    dims: dict[str, Dim] = {"rows": rows}
    if not kernel.flat:
        dims["inner"] = found.rows.inner
    names = ("x", *["residual", "sum"] * kernel.residual, "y")
    for name, (outer, inner) in zip(names, found.rows.strides, strict=True):
        dims |= (
            {f"{name}_inner": inner}
            if kernel.flat
            else {
                f"{name}_outer": outer,
                f"{name}_inner": inner,
            }
        )
    buffers = (*found.sources, *found.parameters, *found.results)
    grid = (ceil_div(rows, kernel.block_rows),)
    warps = dict.fromkeys(min(32, max(1, elements // (32 * each))) for each in (8, 4, 16))
    made = [
        launch(dataclasses.replace(kernel, warps=n), buffers, dims, grid, layouts, work(op))
        for n in warps
    ]
    return dataclasses.replace(made[0], others=tuple(made[1:]))
