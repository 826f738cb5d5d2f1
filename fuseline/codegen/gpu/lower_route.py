"""Lowering of the router of a mixture of experts."""

from __future__ import annotations

import dataclasses

from fuseline.codegen.gpu.kernel import ceil_div, launch
from fuseline.codegen.gpu.route import RouteKernel
from fuseline.codegen.lower import Launch, Lowered, lowers
from fuseline.codegen.routers import ELEMENT_WORK, RouterOperands, router_operands
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Route
from fuseline.ir.types import dim

FEW_TOKENS = 1024
"""Up to so many tokens each has a block of its own, of one warp where that holds the experts: the
rounds of the selection then need no barrier."""

MANY_COLUMNS = 1024
"""Columns that a warp takes of more tokens than that: the rounds of several overlap."""

WARP_COLUMNS = 512
"""Columns that a warp takes of a row that is longer."""


@lowers(Route, backend="cuda")
def lower_route(op: Route, layouts: LayoutMap) -> Lowered:
    """The whole router in one launch: a token, or a few, to a block."""
    found = router_operands(op, layouts)
    if not isinstance(found, RouterOperands):
        return found
    one = RouteKernel(**dataclasses.asdict(found.router))
    one = dataclasses.replace(one, warps=max(1, min(16, one.columns // WARP_COLUMNS)))
    several = max(1, min(4, MANY_COLUMNS // one.columns))
    work = dim(ELEMENT_WORK * op.logits.tensor.numel)

    def launched(kernel: RouteKernel) -> Launch:
        dims = {"rows": found.rows, "logits_step": found.step}
        grid = (ceil_div(found.rows, kernel.block_tokens),)
        return launch(kernel, found.operands, dims, grid, layouts, work)

    if several == 1 or layouts.batch_invariant:
        return [launched(one)]
    few, many = (found.rows, 0, FEW_TOKENS), (found.rows, FEW_TOKENS + 1, None)
    grouped = dataclasses.replace(one, block_tokens=several)
    return [
        dataclasses.replace(launched(one), when=few),
        dataclasses.replace(launched(grouped), when=many),
    ]
