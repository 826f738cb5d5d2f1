"""Lowering of the router of a mixture of experts."""

from __future__ import annotations

import dataclasses

from fuseline.codegen.cpu.route import RouteKernel
from fuseline.codegen.lower import Launch, Lowered, lowers
from fuseline.codegen.routers import ELEMENT_WORK, RouterOperands, router_operands
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Route
from fuseline.ir.types import dim


@lowers(Route)
def lower_route(op: Route, layouts: LayoutMap) -> Lowered:
    """The whole router, one token after the other."""
    found = router_operands(op, layouts)
    if not isinstance(found, RouterOperands):
        return found
    kernel = RouteKernel(**dataclasses.asdict(found.router))
    work = dim(ELEMENT_WORK * op.logits.tensor.numel)
    return [Launch(kernel, found.operands, (found.rows, found.step), work)]
