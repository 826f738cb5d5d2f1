"""Lowerings onto the element-wise kernel: regions, single ops, reductions and copies."""

from __future__ import annotations

from fuseline.codegen.gpu.region_plan import launches
from fuseline.codegen.lower import Lowered, Refusal, lowers
from fuseline.codegen.points import REGIONS, regions
from fuseline.ir.core import Op
from fuseline.ir.layout import LayoutMap


@lowers(*REGIONS, backend="cuda")
def lower_pointwise(op: Op, layouts: LayoutMap) -> Lowered:
    """All that is computed point by point, and all that only copies."""
    found = regions(op, layouts)
    return found if isinstance(found, Refusal) else launches(found, layouts)
