"""Lowerings onto the row kernels."""

from __future__ import annotations

import dataclasses
import logging

from fuseline.codegen.forms import When
from fuseline.codegen.gpu import cuda_norm
from fuseline.codegen.gpu.cuda_norm import CudaRowNormKernel
from fuseline.codegen.gpu.kernel import ceil_div, in_turn, is_parameter, launch, with_hints
from fuseline.codegen.gpu.norm import WIDEST, RowNormKernel
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers, work
from fuseline.codegen.norms import NormOp, NormOperands, norm_operands
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import AddRmsNorm
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.types import Dim, dim, same

log = logging.getLogger(__name__)

FEW_ROWS = 512
"""Up to so many narrow rows, each has a block of its own: more blocks than there is room for."""

BLOCK_ELEMENTS = 2048
"""Elements that a block takes of more rows than that, at least."""

CUDA_WARPS = 4
"""Of a block in CUDA C++ that has more rows than one warp."""


@lowers(RmsNorm, LayerNorm, AddRmsNorm, backend="cuda")
def lower_norm(op: RmsNorm | LayerNorm | AddRmsNorm, layouts: LayoutMap) -> Lowered:
    """A norm over the last dim, with the residual add before it where there is one."""
    found = norm_operands(op, layouts)
    return norm_launches(op, found, layouts) if isinstance(found, NormOperands) else found


def norm_launches(op: NormOp, found: NormOperands, layouts: LayoutMap) -> list[Launch] | Refusal:
    """The launches of a norm, of any size or of few rows and of many."""
    if found.norm.width > WIDEST:
        return Refusal(f"rows of {found.norm.width} elements; the kernel takes up to {WIDEST}")
    rows = dim(found.rows.outer * found.rows.inner)
    kernel = RowNormKernel(
        **dataclasses.asdict(found.norm),
        flat=same(found.rows.outer, 1) and not layouts.batch_invariant,
        ready=all(is_parameter(v, layouts) for v in found.parameters),
    )
    several = max(1, BLOCK_ELEMENTS // kernel.block)
    if several == 1 or layouts.batch_invariant:
        return [_launch(op, found, kernel, rows, layouts)]
    few, many = (rows, 0, FEW_ROWS), (rows, FEW_ROWS + 1, None)
    grouped = dataclasses.replace(kernel, block_rows=several)
    return [
        _launch(op, found, kernel, rows, layouts, few),
        _launch(op, found, grouped, rows, layouts, many),
    ]


def _launch(
    op: NormOp,
    found: NormOperands,
    kernel: RowNormKernel,
    rows: Dim,
    layouts: LayoutMap,
    when: When = None,
) -> Launch:
    """The launch of a kernel, with 8 elements a thread first, then with 4 and 16; in turn with
    these, the same in CUDA C++, which may lead (`cuda_norm.leads`).
    """
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
    warps = dict.fromkeys(min(32, max(1, elements // (32 * each))) for each in (8, 4, 16))
    in_triton = [dataclasses.replace(kernel, warps=n) for n in warps]
    several = 1 if kernel.block_rows == 1 else CUDA_WARPS
    forms = [] if layouts.batch_invariant else _in_cuda(kernel, warps=several)
    in_cuda = [with_hints(k, buffers, dims, layouts) for k in forms]
    cuda_first = bool(in_cuda) and cuda_norm.leads(in_cuda[0], kernel)
    both = in_turn(in_cuda, in_triton) if cuda_first else in_turn(in_triton, in_cuda)
    made = [
        launch(k, buffers, dims, (ceil_div(rows, k.block_rows),), layouts, work(op), when=when)
        for k in both
    ]
    return dataclasses.replace(made[0], others=tuple(made[1:]))


def _in_cuda(kernel: RowNormKernel, *, warps: int) -> list[CudaRowNormKernel]:
    """The same in CUDA C++."""
    try:
        return cuda_norm.forms(kernel, warps=warps)
    except ValueError as error:
        log.debug("%s: no form in CUDA C++ for %s", kernel.symbol, error)
        return []
