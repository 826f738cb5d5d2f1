"""Lowerings onto the element-wise kernel: regions, single ops, reductions and copies."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.codegen.cpu.region_plan import plan
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers
from fuseline.codegen.points import REGIONS, Points, regions
from fuseline.ir.core import Op
from fuseline.ir.layout import LayoutMap


@lowers(*REGIONS)
def lower_pointwise(op: Op, layouts: LayoutMap) -> Lowered:
    """All that is computed point by point, and all that only copies."""
    found = regions(op, layouts)
    return found if isinstance(found, Refusal) else launches(found)


def launches(parts: Sequence[Points]) -> list[Launch] | Refusal:
    """One launch for each region."""
    found: list[Launch] = []
    for part in parts:
        made = plan(part.body, part.operand_places, part.places, part.shifts)
        if isinstance(made, str):
            return Refusal(made)
        buffers = (*(part.operands[i] for i in made.operands), *part.results)
        found.append(Launch(made.kernel, buffers, made.dims, part.work))
    return found
