"""The least that the steps and the layers of a program take, on a machine of known speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fuseline.debug.cost import Account
from fuseline.debug.machine import Machine
from fuseline.debug.page.plans import Planned
from fuseline.ir.core import Op
from fuseline.report import CostRecord, layer_of


@dataclass(frozen=True)
class Floors:
    """What ops move and compute; None where that depends on a size that nobody gave.

    Attributes:
        steps: of the op of each step; None also where several steps do parts of it.
        layers: of all ops of a layer.
    """

    steps: Sequence[CostRecord | None] = ()
    layers: Mapping[str, Sequence[CostRecord | None]] = field(
        default_factory=dict[str, "Sequence[CostRecord | None]"]
    )

    @classmethod
    def of(cls, planned: Planned, launches: Mapping[Op, int], account: Account) -> Floors:
        """Those of a plan; ``launches`` has how many steps do each op."""
        records = {
            op: None if account.unknown(op) else account.record(op, "compiled")
            for op in planned.func.ops
        }
        layers: dict[str, list[CostRecord | None]] = {}
        for op, record in records.items():
            layers.setdefault(layer_of(op.loc.module if op.loc else ""), []).append(record)
        steps = [records[op] if launches[op] == 1 else None for op in planned.owners]
        return cls(steps, layers)

    def step(self, number: int, machine: Machine | None) -> float | None:
        """Seconds that the op of a step takes at least."""
        record = self.steps[number]
        return None if record is None or machine is None else machine.seconds(record)

    def layer(self, name: str, machine: Machine | None) -> float | None:
        """Seconds that a layer takes at least."""
        return None if machine is None else _seconds(self.layers.get(name, ()), machine)

    def whole(self, machine: Machine | None) -> float | None:
        """Seconds that the program takes at least."""
        every = [record for records in self.layers.values() for record in records]
        return None if machine is None else _seconds(every, machine)


def _seconds(records: Sequence[CostRecord | None], machine: Machine) -> float | None:
    if any(record is None for record in records):
        return None
    return sum(machine.seconds(record) for record in records if record is not None)


__all__ = ["Floors"]
