"""Operands that one kernel reads as one block."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.view import unreshaped
from fuseline.ir.types import dim


def one_behind_the_other(group: Sequence[Value], layouts: LayoutMap) -> bool:
    """Whether values are one block: arguments, which the program packs, or slices of one."""
    if all(unreshaped(v).owner is None for v in group):
        return True
    places = [layouts[v] for v in group]
    for before, value, after in zip(places, group, places[1:], strict=False):
        end = dim(before.layout.offset + value.tensor.numel)
        if after.root is not before.root or after.layout.offset != end:
            return False
    return True
