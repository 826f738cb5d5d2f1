"""The pass manager: runs passes over a func, verifies, and keeps the record of it all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from fuseline.ir.core import Func, IRError, Op
from fuseline.ir.names import settle
from fuseline.ir.types import TensorType
from fuseline.ir.verify import verify
from fuseline.passes.apply import Change, apply, last_replaced
from fuseline.passes.gate import Gate
from fuseline.passes.record import Run, note_miss
from fuseline.passes.rewrite import FuncPass, NoMatch, Pass, Replace, Replacement, Rewrite
from fuseline.report import PassRecord

log = logging.getLogger(__name__)

_MAX_ROUNDS = 16


class Observer(Protocol):
    """What the dumps implement: told of every pass, with the func before and after."""

    def before_pass(self, func: Func, pass_: Pass) -> None:
        """The func as the pass will get it."""
        ...

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        """The func as the pass left it."""
        ...


class RewriteObserver:
    """An observer that is told of every rewrite as well; what it does not define does nothing."""

    def before_pass(self, func: Func, pass_: Pass) -> None:
        """The func as the pass will get it."""

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        """The func as the pass left it."""

    def before_rewrite(self, func: Func, rewrite: Rewrite[Any], root: Op) -> None:
        """A rewrite was found to apply at ``root``; nothing has changed yet."""

    def after_rewrite(self, func: Func, rewrite: Rewrite[Any], change: Change) -> None:
        """The rewrite was applied and recorded."""


class PassManager:
    """Runs passes over a func.

    Args:
        passes: in the order to run.
        check: run the verifier after each pass (always done in tests).
        limit: apply at most this many rewrites; for bisecting.
        disable: names of passes to leave out.
        skip: names of single rewrites to leave out, see `Gate`.
        only: names of the only rewrites to apply; none: all.
        observers: told of every pass.

    """

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        check: bool = False,
        limit: int | None = None,
        disable: Iterable[str] = (),
        skip: Iterable[str] = (),
        only: Iterable[str] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        disabled = frozenset(disable)
        self.passes = [p for p in passes if p.name not in disabled]
        self.check = check
        self.gate = Gate.of(limit, skip, only)
        self.observers = observers
        self._watching = list[RewriteObserver]()
        self.current: Pass | None = None
        """The pass that is running, or that raised."""
        self.latest: Run | None = None
        """The record of the last run, also of one that raised."""

    def run(self, func: Func) -> Run:
        """Run all passes; the func is edited in place.

        Raises:
            IRError: ``check`` is set and a pass left an invalid func; the message names the pass.

        """
        self._watching = [o for o in self.observers if isinstance(o, RewriteObserver)]
        run = self.latest = Run(func)
        settle(func)
        for pass_ in self.passes:
            self.current = pass_
            self._run_pass(pass_, run)
        self.current = None
        return run

    def _run_pass(self, pass_: Pass, run: Run) -> None:
        func = run.func
        run.shared.clear()
        for observer in self.observers:
            observer.before_pass(func, pass_)
        start, before = time.perf_counter(), func.ops
        if isinstance(pass_, Rewrite):
            changed = self._rewrite_all(cast("Rewrite[Any]", pass_), run)
        elif isinstance(pass_, FuncPass):
            snapshot = _snapshot(func)
            pass_.run(func)
            changed = _snapshot(func) != snapshot
        else:
            raise TypeError(f"{pass_!r} is neither a Rewrite nor a FuncPass")
        record = PassRecord(
            pass_.name,
            seconds=time.perf_counter() - start,
            removed=max(0, len(before) - len(func)),
            added=max(0, len(func) - len(before)),
            changed=changed,
        )
        run.passes.append(record)
        if changed:
            settle(func, frozenset(before))
        log.debug(
            "%s: %.1f ms, %d -> %d ops",
            pass_.name,
            record.seconds * 1e3,
            len(before),
            len(func),
        )
        if self.check:
            try:
                verify(func)
            except IRError as error:
                raise IRError(f"after {pass_.name}: {error}") from error
        for observer in self.observers:
            observer.after_pass(func, cast("Pass", pass_), record, run)

    def _rewrite_all(self, rewrite: Rewrite[Any], run: Run) -> bool:
        changed = False
        for _ in range(_MAX_ROUNDS):
            again = False
            for op in run.func.ops:
                if not isinstance(op, rewrite.root) or op not in run.func:
                    continue
                if self.gate.closed(len(run.applied)):
                    return changed
                again |= self._try(rewrite, op, run)
            changed |= again
            if not again:
                return changed
        log.warning("%s still changes after %d rounds; stopped", rewrite.name, _MAX_ROUNDS)
        return changed

    def _try(self, rewrite: Rewrite[Any], op: Op, run: Run) -> bool:
        outcome = rewrite.rewrite(op, run.func)
        if outcome is None:
            return False
        if isinstance(outcome, NoMatch):
            if rewrite.pattern:
                note_miss(rewrite, op, outcome, run)
            return False
        _check_kind(outcome)
        last = last_replaced(op, outcome, run.func)
        name = run.names.of(rewrite.name, last)
        if not self.gate.allows(name):
            return False
        run.names.applied(rewrite.name, last)
        for observer in self._watching:
            observer.before_rewrite(run.func, rewrite, op)
        if self.check:
            _check_types(rewrite, outcome)
        change = apply(rewrite, op, outcome, run, name)
        for observer in self._watching:
            observer.after_rewrite(run.func, rewrite, change)
        return True


def _check_kind(outcome: object) -> None:
    """Hold what a rewrite returns to what it may return.

    Raises:
        TypeError: it is something else.

    """
    if not isinstance(outcome, (Replace, Mapping)):
        kind = type(outcome).__name__
        raise TypeError(
            f"rewrite returned a {kind}, expected Replace, a mapping of old values to new ones, "
            "NoMatch or None"
        )


def _check_types(rewrite: Rewrite[Any], outcome: Replacement) -> None:
    """Hold new values to the types of those that they replace; sizes may be written otherwise.

    Raises:
        IRError: one has another element type, rank, or known size.

    """
    values = outcome.values if isinstance(outcome, Replace) else outcome
    for old, new in values.items():
        if isinstance(old.type, TensorType) and isinstance(new.type, TensorType):
            pairs = zip(old.shape, new.shape, strict=False)
            ints = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
            alike = old.dtype is new.dtype and len(old.shape) == len(new.shape)
            if alike and all(a == b for a, b in ints):
                continue
        elif type(old.type) is type(new.type):
            continue
        raise IRError(f"after {rewrite.name}: {old.type} is replaced by {new.type}")


def _snapshot(func: Func) -> tuple[object, ...]:
    """Enough of a func to tell whether a pass changed it: ops, operands and returns."""
    ops = tuple((id(op), op.operands) for op in func.ops)
    return (ops, func.returns, tuple(func.args), dict(func.symbols))
