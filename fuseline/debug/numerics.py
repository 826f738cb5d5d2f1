"""Numbers around each rewrite: an observer that holds every rewrite to the numbers rule.

    numerics = Numerics(func, arguments)
    PassManager(passes, observers=[numerics]).run(func)
    numerics.records

A rewrite may be `tolerance` times as far from float64 as eager is, plus one unit in the last place.
One that only moves data must keep eager's bits. The first that does not ends the run: `PassError`
FL0410 names it, its site, the value, both errors, and the option that turns it off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from fuseline import errors
from fuseline.debug.gaps import Gap, gap
from fuseline.debug.living import Compared, Expected, Living
from fuseline.ir.core import Func, IRError, Op, Trait, Value
from fuseline.ir.evaluate import Argument
from fuseline.ir.ops import buffer, create, fused, index, view
from fuseline.passes.apply import Change
from fuseline.passes.manager import RewriteObserver
from fuseline.passes.record import Run
from fuseline.passes.rewrite import FuncPass, Pass, Rewrite
from fuseline.report import NumericsRecord, PassRecord

log = logging.getLogger(__name__)

_MOVES = (
    *(buffer.Read, buffer.Write, buffer.IndexWrite, buffer.SliceWrite, buffer.ShiftWrite),
    *(create.Full, create.Iota, fused.Copy, view.Concat, view.Pad),
    *(index.Embedding, index.Index, index.IndexSelect, index.Gather, index.Scatter),
    *(index.IndexCopy, index.SliceScatter),
)
"""Ops that compute nothing: a result of theirs is a copy, a permutation, or a constant."""

_BLIND = 0.25
"""Eager's error relative to the value, from which on comparing with it tells little."""


class Numerics(RewriteObserver):
    """Checks every rewrite, and every pass over a whole func, on one set of arguments.

    Args:
        func: before all passes; it is the one that the manager then edits.
        arguments: of the func, in order, as `fuseline.debug.seeded` makes them or as a caller gave
            them; they are left as they are.
        tolerance: how far from float64 a value may be, as a multiple of eager's own error.

    """

    def __init__(
        self, func: Func, arguments: Sequence[Argument], *, tolerance: float = 1.5
    ) -> None:
        self.tolerance = tolerance
        self.records: list[NumericsRecord] = []
        """One for each rewrite, in order, and for what was not compared."""
        self._before: _Snapshot | None = None
        self._living: Living | None = None
        self._expected: Expected | None = None
        started = time.perf_counter()
        try:
            self._living = Living(func, arguments)
        except IRError as error:
            self.records.append(NumericsRecord(0, "import", "", unchecked=(str(error),)))
            return
        log.debug("eager's values and float64's: %.2f s", time.perf_counter() - started)
        reasons = [f"%{v.hint}: {why}" for v, why in self._living.restarts]
        reasons += [f"%{v.hint}: {why}" for v, why in self._far_off()]
        if reasons:
            self.records.append(NumericsRecord(0, "import", "", unchecked=tuple(reasons)))

    def _far_off(self) -> Iterable[tuple[Value, str]]:
        """Values that eager itself is far from: next to nothing is told about what is like them."""
        assert self._living is not None, "called once there are values"
        for value in self._living.func.returns:
            if anchor := self._living.anchors.get(value):
                own = gap(anchor.eager, anchor.eager, anchor.exact)
                if own.eager > _BLIND * own.size:
                    yield value, f"eager's own error is {own.eager / own.size:.2g} of the value"

    # -- observing --------------------------------------------------------------------------

    def before_pass(self, func: Func, pass_: Pass) -> None:
        """Note what a pass over a whole func begins with."""
        self._before = _Snapshot(func) if isinstance(pass_, FuncPass) else None

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        """Compare what such a pass has changed."""
        if self._living is None or self._before is None or not record.changed:
            return
        values, new, removed = self._before.difference(func)
        moved = self._before.moved(func)
        self._before = None
        found = self._living.changed(values, new, removed, moved)
        where = next((str(op.loc) for op in new if op.loc is not None), "")
        if found or new:  # else what is gone was dead
            self._judge(0, pass_.name, where, found, _only_moves(new))

    def after_rewrite(self, func: Func, rewrite: Rewrite[Any], change: Change) -> None:
        """Compare what a rewrite has changed."""
        if self._living is None:
            return
        applied = change.applied
        found = self._living.changed([*change.values.items()], applied.ops, change.removed)
        where = str(applied.where or "")
        self._judge(applied.number, rewrite.name, where, found, _only_moves(applied.ops))

    # -- judging ----------------------------------------------------------------------------

    def _judge(
        self, number: int, name: str, where: str, found: Sequence[Compared], moves: bool
    ) -> None:
        record = self._record(number, name, where, found)
        self.records.append(record)
        broken = [c for c in found if c.gap and c.gap.share(self.tolerance) > 1]
        moved = [c for c in found if moves and c.direct and c.gap and not c.gap.same]
        for compared in (*broken, *moved):
            assert compared.gap is not None, "only what was compared can be broken"
            raise self._error(record, compared.value, compared.gap, exact=not broken)

    def _record(
        self, number: int, name: str, where: str, found: Sequence[Compared]
    ) -> NumericsRecord:
        pairs = [(c.value, c.gap) for c in found if c.gap is not None]
        reasons = [f"{name}, %{c.value.hint}: {c.reason}" for c in found if c.gap is None]
        if not found:
            reasons = [f"{name}: nothing that eager computes depends on it"]
        record = NumericsRecord(number, name, where, unchecked=tuple(dict.fromkeys(reasons)))
        if not pairs:
            return record
        value, worst = max(pairs, key=lambda p: (p[1].share(self.tolerance), p[1].ulp))
        return NumericsRecord(
            *(number, name, where, _shown(value), len(pairs)),
            same=all(g.same for _, g in pairs),
            ulp=worst.ulp,
            eager_ulp=worst.eager_ulp,
            ratio=worst.ratio,
            share=worst.share(self.tolerance),
            unchecked=record.unchecked,
        )

    def _error(
        self, record: NumericsRecord, value: Value, found: Gap, *, exact: bool
    ) -> errors.FuselineError:
        units = "units in the last place"
        allowed = self.tolerance * found.eager_ulp + 1
        expected = f"at most {_units(allowed)}: {self.tolerance:g} times eager's, and one"
        if exact:
            expected = "eager's bits, as it only moves data"
        elif not found.size:
            expected = "eager's value, where there is nothing to round"
        title = f"rewrite #{record.number} {record.rewrite}" if record.number else record.rewrite
        return errors.BROKEN_NUMBERS.error(
            title,
            where=record.where or None,
            found=f"{_shown(value)} {_units(found.ulp)} {units} from float64, "
            f"eager {_units(found.eager_ulp)}",
            expected=expected,
            hint=f'disable=["{record.rewrite}"] turns it off, and FUSELINE_DISABLE',
        )

    # -- kernels ----------------------------------------------------------------------------

    def end(self) -> None:
        """The passes have run: keep what the program must give, and let go of all else.

        Parameters that something holds cannot be packed, and activations are large.
        """
        self._expected = self._living.expected() if self._living else None
        self._living = None

    def kernels(self, results: Sequence[Tensor], arguments: Sequence[Argument]) -> NumericsRecord:
        """Compare what a built program gave, and left in its arguments, for the same arguments.

        Nothing is raised: where a decision (which experts, say) falls otherwise by rounding, the
        kernels may be right and the numbers far off. The record's `share` tells.
        """
        found = self._expected.compared(results, arguments) if self._expected else []
        record = self._record(0, "kernels", "", found)
        self.records.append(record)
        self._expected = None
        return record


class _Snapshot:
    """A func before a pass that edits all of it, to tell what was replaced by what."""

    def __init__(self, func: Func) -> None:
        self._operands = {op: op.operands for op in func.ops}
        self._returns = func.returns

    def difference(self, func: Func) -> tuple[Sequence[tuple[Value, Value]], list[Op], list[Op]]:
        """Old values with those that ops, or the caller, read in their place; new ops; old ones."""
        values: dict[tuple[Value, Value], None] = {}
        pairs = [(old, op.operands) for op, old in self._operands.items() if op in func]
        for old, new in (*pairs, (self._returns, func.returns)):
            if len(old) == len(new):
                values |= {(o, n): None for o, n in zip(old, new, strict=True) if o is not n}
        new_ops = [op for op in func.ops if op not in self._operands]
        return list(values), new_ops, [op for op in self._operands if op not in func]

    def moved(self, func: Func) -> list[Op]:
        """What reads or writes buffers, if its order has changed."""
        kept = [op for op in self._operands if op in func and _has_effect(op)]
        now = [op for op in func.ops if op in self._operands and _has_effect(op)]
        return kept if kept != now else []


def _has_effect(op: Op) -> bool:
    return op.has(Trait.READS) or op.has(Trait.WRITES)


def _only_moves(ops: Sequence[Op]) -> bool:
    return all(isinstance(op, _MOVES) or op.has(Trait.VIEW) for op in ops)


def _units(error: float) -> str:
    return f"{error:.3g}" if error < 1000 else f"{error:.0f}"  # inf, too


def _shown(value: Value) -> str:
    return f"%{value.hint} {value.type}"


__all__ = ["Numerics"]
