"""What the page shows of a plan: its steps, its pieces, and its memory over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fuseline.debug.page.data import BufferView, MemoryView, Span, StepView
from fuseline.ir.core import Func, Op, Value
from fuseline.passes.plan import LiveRange
from fuseline.report import span
from fuseline.runtime.executor import applies, lay_out
from fuseline.runtime.plan import (
    WORKERS,
    Evaluator,
    Expr,
    HostStep,
    LibraryStep,
    NativeStep,
    Plan,
    Step,
)


@dataclass(frozen=True)
class Planned:
    """A plan of a func, and where it is from.

    Attributes:
        func: what was planned.
        plan: its steps.
        owners: the op of each step.
        lives: from which op to which values are held, of the ops that have steps.
        buffers: where they lie.
    """

    func: Func
    plan: Plan
    owners: Sequence[Op]
    lives: Mapping[Value, LiveRange]
    buffers: Mapping[Value, int]

    def at(self, sizes: Mapping[str, int], threads: int) -> Callable[[Expr], int]:
        """The value of each expression of the plan; a size that is not given has its least."""
        ranges = self.plan.ranges
        known = {n: sizes.get(n, ranges[n][0] if n in ranges else 0) for n in self.plan.symbols}
        return Evaluator(self.plan)({**known, WORKERS: threads})


def step_views(planned: Planned) -> tuple[StepView, ...]:
    """The steps of a plan."""
    pairs = zip(planned.plan.steps, planned.owners, strict=True)
    return tuple(_step(step, str(op.loc or "")) for step, op in pairs)


def _step(step: Step, where: str) -> StepView:
    label = step.label if step.when is None else f"{step.label}, for {span(*step.when)}"
    match step:
        case NativeStep():
            return StepView(label, step.symbol, where, "native")
        case LibraryStep():
            return StepView(label, step.name, where, "library")
        case HostStep():
            return StepView(label, "", where, "torch")


def pieces_of(planned: Planned, value: Callable[[Expr], int]) -> dict[Op, int]:
    """The piece that each op runs in: native steps with no other between them are one.

    What torch or its libraries do lies between pieces. A view is where what it is a view of is.
    """
    found: dict[Op, int] = {}
    number, inside = -1, False
    for step, op in zip(planned.plan.steps, planned.owners, strict=True):
        if not applies(step, value):
            continue
        native = isinstance(step, NativeStep)
        number += native and not inside
        inside = native
        found[op] = max(found.get(op, -1), number if native else -1)
    for op in planned.func.ops:
        if op not in found and op.operands:
            owner = op.operands[0].owner
            found[op] = -1 if owner is None else found.get(owner, -1)
    return found


def kernels_of(planned: Planned) -> dict[Op, tuple[str, ...]]:
    """The kernels that do each op, by symbol."""
    found: dict[Op, dict[str, None]] = {}
    for step, op in zip(planned.plan.steps, planned.owners, strict=True):
        if isinstance(step, NativeStep):
            found.setdefault(op, {})[step.symbol] = None
    return {op: tuple(symbols) for op, symbols in found.items()}


def launches_of(planned: Planned, value: Callable[[Expr], int]) -> dict[Op, int]:
    """How many steps do each op."""
    found: dict[Op, int] = {}
    for step, op in zip(planned.plan.steps, planned.owners, strict=True):
        found[op] = found.get(op, 0) + applies(step, value)
    return found


def memory_of(planned: Planned, value: Callable[[Expr], int]) -> MemoryView:
    """The memory plan: the place of each value, and from which step to which it has that."""
    plan = planned.plan
    places, arena = lay_out(plan, value)
    spans = _spans(planned)
    buffers: list[BufferView] = []
    for held, live in planned.lives.items():
        number = planned.buffers[held]
        buffer = plan.buffers[number]
        kind = buffer.kind
        if kind not in ("temp", "output", "host"):
            continue
        steps = (spans[live.first][0], spans[min(live.last, len(spans) - 1)][1])
        nbytes = value(buffer.nbytes)
        place = places.get(number, 0)
        buffers.append(BufferView(held.hint, str(held.type), kind, place, nbytes, steps))
    buffers += _scratch(plan, places, value)
    weights = sum(
        _nbytes(spec.shape, spec.dtype.itemsize, value)
        for spec in plan.args
        if spec.fixed and spec.kind == "tensor"
    )
    outputs = sum(b.bytes for b in buffers if b.kind == "output")
    return MemoryView(tuple(buffers), arena, weights, outputs)


def _spans(planned: Planned) -> list[Span]:
    """The first and the last step of each op that has steps."""
    first: dict[Op, int] = {}
    last: dict[Op, int] = {}
    for number, op in enumerate(planned.owners):
        first.setdefault(op, number)
        last[op] = number
    return [(first[op], last[op]) for op in first]


def _scratch(
    plan: Plan, places: Mapping[int, int], value: Callable[[Expr], int]
) -> list[BufferView]:
    """What steps need for themselves alone."""
    number = next((i for i, b in enumerate(plan.buffers) if b.kind == "scratch"), None)
    found: list[BufferView] = []
    for i, step in enumerate(plan.steps):
        if number is None or isinstance(step, HostStep) or not applies(step, value):
            continue
        needed = value(step.scratch)
        if needed:
            type_, steps = f"u8[{needed}]", (i, i)
            found.append(BufferView("scratch", type_, "temp", places[number], needed, steps))
    return found


def _nbytes(shape: Sequence[Expr], itemsize: int, value: Callable[[Expr], int]) -> int:
    total = itemsize
    for extent in shape:
        total *= value(extent)
    return total


__all__ = [
    "Planned",
    "kernels_of",
    "launches_of",
    "memory_of",
    "pieces_of",
    "step_views",
]
