"""What the ops of a func move and compute at least: the account that a floor of time is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fuseline.ir.core import Func, Op
from fuseline.ir.ops.call import called
from fuseline.ir.types import Dim, free_symbols, substitute
from fuseline.report import CostRecord


def costs_of(
    func: Func, form: Literal["eager", "compiled"], sizes: Mapping[str, int]
) -> list[CostRecord]:
    """A record for each op of a func that moves or computes anything; views do neither.

    ``sizes`` gives the symbols of shapes; one that it lacks, as only the data tells it, counts as
    the least that it may be.
    """
    account = Account(func, sizes)
    records = [account.record(op, form) for op in func.ops]
    return [record for record in records if record.bytes or record.flops]


class Account:
    """The bytes and flops of the ops of a func, for some sizes, as in `costs_of`."""

    def __init__(self, func: Func, sizes: Mapping[str, int]) -> None:
        least = {name: found.lo for name, found in func.symbols.items()}
        self.binding = {**least, **sizes}
        self._given = set(sizes)
        self._known: dict[Dim, int] = {}

    def __call__(self, op: Op) -> tuple[int, int]:
        """Bytes and flops of an op."""
        cost = op.cost()
        return self.value(cost.bytes), self.value(cost.flops)

    def unknown(self, op: Op) -> set[str]:
        """The sizes that the cost of an op depends on and nobody gave: they count as the least."""
        cost = op.cost()
        return (free_symbols(cost.bytes) | free_symbols(cost.flops)) - self._given

    def record(self, op: Op, form: Literal["eager", "compiled"]) -> CostRecord:
        """What the report has of an op."""
        moved, flops = self(op)
        module, source = ("", "") if op.loc is None else (op.loc.module, op.loc.source)
        values = op.operands or op.results
        dtype = values[0].dtype.value if values else ""
        return CostRecord(form, module, source, called(op), dtype, moved, flops)

    def value(self, amount: Dim) -> int:
        """An amount in numbers; the layers of a model have the same ones."""
        known = self._known.get(amount)
        if known is None:
            known = self._known[amount] = substitute(amount, self.binding)
        return known


__all__ = ["Account", "costs_of"]
