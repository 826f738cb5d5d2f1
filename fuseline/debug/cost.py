"""What the ops of a func move and compute at least: the account that a floor of time is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fuseline.ir.core import Func
from fuseline.ir.ops.call import called
from fuseline.ir.types import substitute
from fuseline.report import CostRecord


def costs_of(
    func: Func, form: Literal["eager", "compiled"], sizes: Mapping[str, int]
) -> list[CostRecord]:
    """A record for each op of a func that moves or computes anything; views do neither.

    ``sizes`` gives the symbols of shapes; one that it lacks, as only the data tells it, counts as
    the least that it may be.
    """
    least = {name: found.lo for name, found in func.symbols.items()}
    binding = {**least, **sizes}
    found: list[CostRecord] = []
    for op in func.ops:
        cost = op.cost()
        moved, flops = (substitute(amount, binding) for amount in (cost.bytes, cost.flops))
        if not moved and not flops:
            continue
        module, source = ("", "") if op.loc is None else (op.loc.module, op.loc.source)
        values = op.operands or op.results
        dtype = values[0].dtype.value if values else ""
        found.append(CostRecord(form, module, source, called(op), dtype, moved, flops))
    return found


__all__ = ["costs_of"]
