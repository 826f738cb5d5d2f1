"""The pass manager: runs passes, applies rewrites, verifies, and keeps the one record of it all.

Remarks, dumps, reports, bisecting and the fuse limit all read this record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from fuseline.ir.core import Cost, Func, IRError, Loc, Op, Trait, Value
from fuseline.ir.names import settle
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.types import TensorType, dim, format_dim
from fuseline.ir.verify import verify
from fuseline.passes.dce import has_effect
from fuseline.passes.gate import Gate, Names
from fuseline.passes.rewrite import FuncPass, NoMatch, Pass, Replace, Replacement, Rewrite
from fuseline.report import PassRecord, Site

log = logging.getLogger(__name__)

_MAX_ROUNDS = 16

_BY_THE_WAY = ("concat", "gather")
"""Ops that bring together what a new op reads, such as the biases of all experts."""

_NORMS = (RmsNorm.name, LayerNorm.name)
"""Ops that programs may hold before any pass: torch has them whole."""

_SIBLINGS = ("merged_rows",)
"""Patterns of ops that lie side by side: one that is missed leaves each of them a site as it is."""


@dataclass
class Applied:
    """One applied rewrite, by running number.

    ``name`` stays where other rewrites are left out (see `Gate`), and ``needs`` has the numbers of
    the earlier rewrites that made what this one replaced: ``removed``, whose results have become
    other ``values``.
    """

    number: int
    rewrite: str
    pattern: str
    where: Loc | None
    held: tuple[str, ...]
    details: dict[str, str]
    before: Cost
    after: Cost
    ops: tuple[Op, ...] = ()
    work: Op | None = None
    swallowed: list[Applied] = field(default_factory=list["Applied"])
    owner: Applied | None = None
    name: str = ""
    needs: tuple[int, ...] = ()
    removed: tuple[Op, ...] = ()
    values: Mapping[Value, Value] = field(default_factory=dict[Value, Value])

    def __str__(self) -> str:
        bytes_before, bytes_after = (format_dim(c.bytes) for c in (self.before, self.after))
        return (
            f"#{self.number} {self.rewrite} at {self.where or '<unknown>'}: "
            f"{bytes_before} to {bytes_after} bytes"
        )


@dataclass(frozen=True)
class Missed:
    """A place that looked like a pattern, and the predicate that failed there."""

    rewrite: str
    pattern: str
    op: Op
    where: Loc | None
    reason: str
    details: dict[str, str]
    held: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Why other attempts at the same place failed, that got less far."""


class Observer(Protocol):
    """What the dumps implement: told of every pass, with the func before and after."""

    def before_pass(self, func: Func, pass_: Pass) -> None:
        """The func as the pass will get it."""
        ...

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        """The func as the pass left it."""
        ...


@dataclass(frozen=True)
class Change:
    """What one applied rewrite did to a func, beside its record.

    Attributes:
        applied: the record; its ``ops`` are the new ones.
        values: old value to new value.
        removed: the ops that are gone.
    """

    applied: Applied
    values: Mapping[Value, Value]
    removed: Sequence[Op]


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


@dataclass
class Run:
    """The record of one pipeline over one func."""

    func: Func
    passes: list[PassRecord] = field(default_factory=list[PassRecord])
    applied: list[Applied] = field(default_factory=list[Applied])
    missed: dict[tuple[str, Op], Missed] = field(default_factory=dict[tuple[str, Op], Missed])
    owners: dict[Op, Applied] = field(default_factory=dict[Op, Applied])
    """The rewrite that made each living op."""
    names: Names = field(default_factory=Names)

    def sites(self) -> list[Site]:
        """The sites: each live pattern, fused or missed, swallowed parts in its details."""
        return [site for site, _ in self.located()]

    def located(self) -> list[tuple[Site, Op | None]]:
        """The sites, each fused one with the op that does its work.

        A norm is one site: alone, in a larger fusion, or as the one that a fusion missed. So is
        what one pass recognised and a later one of the same pattern missed: the miss has its place.
        """
        applied = [a for a in self.applied if a.pattern and a.owner is None]
        missed = self.missed_sites()
        norms = {m.op for m in missed if m.op.name in _NORMS and m.pattern not in _SIBLINGS}
        places = {(m.pattern, m.op) for m in missed}
        found: list[tuple[Site, Op | None]] = []
        known: dict[tuple[str, Op], dict[str, str]] = {}
        for a in applied:
            op, details = self._worker(a), a.details | _parts(a)
            again = [(a.pattern, o) for o in a.ops if (a.pattern, o) in places]
            if again:
                known[again[0]] = details
            elif op is not None and norms.isdisjoint(a.ops):
                found.append((Site(a.pattern, str(a.where or ""), "fused", details=details), op))
        made = norms.union(*(a.ops for a in applied))
        found += [
            (Site(op.name, str(op.loc or ""), "fused"), op)
            for op in self.func.ops
            if op.name in _NORMS and op not in made
        ]
        for m in missed:
            details = known.get((m.pattern, m.op), {}) | m.details
            where = str(m.where or "")
            found.append((Site(m.pattern, where, "missed", m.reason, details=details), None))
        return found

    def missed_sites(self) -> list[Missed]:
        """The misses that are sites: the op is still there, and none that its own rewrite made."""
        applied = [a for a in self.applied if a.pattern and a.owner is None]
        made_by = {(a.pattern, a.rewrite, op) for a in applied for op in a.ops}
        return [
            m
            for m in self.missed.values()
            if m.op in self.func and (m.pattern, m.rewrite, m.op) not in made_by
        ]

    def _worker(self, applied: Applied) -> Op | None:
        """The op that does what a rewrite found: the last one that is neither view nor aside."""
        if applied.work is not None and applied.work in self.func:
            return applied.work
        living = [op for op in applied.ops if op in self.func]
        return next((op for op in reversed(living) if not _is_aside(op)), (living or [None])[-1])


def _parts(applied: Applied) -> dict[str, str]:
    parts: list[str] = []
    for inner in applied.swallowed:
        again = (inner.pattern, inner.where) == (applied.pattern, applied.where)
        if inner.pattern and not again:
            parts.append(f"{inner.pattern} at {inner.where}" if inner.where else inner.pattern)
        parts.extend(v for t in _parts(inner).values() for v in t.split("; "))
    return {"swallowed": "; ".join(dict.fromkeys(parts))} if parts else {}


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
                _miss(rewrite, op, outcome, run)
            return False
        last = _last_replaced(op, outcome, run.func)
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


def _last_replaced(root: Op, outcome: Replacement, func: Func) -> Op:
    """The last op of those that a rewrite replaces, wherever it started from; the root if none."""
    change = outcome if isinstance(outcome, Replace) else Replace(outcome)
    ops = [*change.erase, *(v.owner for v in change.values if v.owner is not None)]
    return max(ops, key=func.places.__getitem__, default=root)


def _miss(rewrite: Rewrite[Any], op: Op, outcome: NoMatch, run: Run) -> None:
    """Note a miss; of those of several rewrites at one op, the latest that got furthest stands."""
    others = tuple(outcome.others)
    known = run.missed.get((rewrite.pattern, op))
    if known is not None and known.rewrite != rewrite.name:
        further = len(known.held) > len(outcome.held)
        reason = outcome.reason if further else known.reason
        every = dict.fromkeys((*others, *known.others, reason))
        if further:
            run.missed[rewrite.pattern, op] = replace(known, others=tuple(every))
            return
        others = tuple(every)
    run.missed[rewrite.pattern, op] = Missed(
        rewrite=rewrite.name,
        pattern=rewrite.pattern,
        op=op,
        where=op.loc,
        reason=outcome.reason,
        details=dict(outcome.details),
        held=tuple(outcome.held),
        others=others,
    )


def apply(
    rewrite: Rewrite[Any], root: Op, outcome: Replacement, run: Run, name: str = ""
) -> Change:
    """Put a rewrite's new ops in, redirect readers, erase what died, and record it."""
    change = outcome if isinstance(outcome, Replace) else Replace(outcome)
    func = run.func
    new = _new_ops(func, [*change.values.values()], change.ops)
    for op in new:
        if op.loc is None:
            op.loc = root.loc
    for old, value in change.values.items():
        if value.owner in new and old.hint:
            value.hint = old.hint
    func.args.extend(change.args)
    func.edit(
        before=change.before or root,
        insert=new,
        replace_values=change.values,
        erase=change.erase,
    )
    freed = [*change.values, *(v for op in change.erase for v in op.operands)]
    dead = erase_dead(func, [v.owner for v in freed if v.owner is not None])
    removed = [*change.erase, *dead]
    if not _in_order(func, new):
        func.reorder(schedule(func, *_window(func, new)))
    record = _record(rewrite, root, change, run, new, removed, name)
    return Change(record, change.values, removed)


def _new_ops(func: Func, values: Sequence[Value], extra: Sequence[Op]) -> list[Op]:
    """The ops that are not yet in the func: operands first, those that a rewrite names in order."""
    order: dict[Op, None] = {}

    def visit(op: Op | None) -> None:
        if op is None or op in func or op in order:
            return
        for value in op.operands:
            visit(value.owner)
        order[op] = None

    for op in extra:
        visit(op)
    for value in values:
        visit(value.owner)
    return list(order)


def erase_dead(func: Func, candidates: Iterable[Op]) -> list[Op]:
    """Erase candidates whose results nobody reads, then what only they read; effects stay."""
    stack, erased = list(candidates), list[Op]()
    while stack:
        op = stack.pop()
        if op not in func or has_effect(op):
            continue
        if any(func.use_count(v) for v in op.results):
            continue
        func.edit(erase=[op])
        erased.append(op)
        stack += [v.owner for v in op.operands if v.owner is not None]
    return erased


def _in_order(func: Func, new: Sequence[Op]) -> bool:
    place = func.places
    for op in new:
        here = place[op]
        if any(v.owner is not None and place[v.owner] > here for v in op.operands):
            return False
        if any(place[user] < here for v in op.results for user in func.users(v)):
            return False
    return True


def _window(func: Func, new: Sequence[Op]) -> tuple[int, int]:
    """The part of the order within which new ops can be brought behind what they read."""
    place = func.places
    readers = [place[u] for op in new for v in op.results for u in func.users(v)]
    makers = [place[v.owner] for op in new for v in op.operands if v.owner is not None]
    own = [place[op] for op in new]
    return min(own + readers), max(own + makers) + 1


def schedule(func: Func, first: int = 0, stop: int | None = None) -> list[Op]:
    """A valid order as close to the present one as can be: operands first, effects kept in order.

    Ops on one buffer keep their order among themselves wherever one of them writes. Only the ops
    from ``first`` on and before ``stop`` may move.
    """
    window = func.ops[first:stop]
    inside = set(window)
    waits = effect_edges(window)
    order: dict[Op, None] = {}
    active: set[Op] = set()
    for start in window:
        stack = [start]
        while stack:
            op = stack[-1]
            if op in order:
                stack.pop()
                continue
            owners = [v.owner for v in op.operands if v.owner in inside]
            needs = [o for o in owners if o not in order]
            needs += [w for w in waits.get(op, ()) if w not in order]
            if not needs:
                order[op] = None
                active.discard(op)
                stack.pop()
                continue
            if op in active and any(n in active for n in needs):
                raise IRError(f"no order satisfies {op!r}: it depends on itself")
            active.add(op)
            stack += reversed(needs)
    return [*func.ops[:first], *order, *func.ops[first + len(window) :]]


def effect_edges(ops: Sequence[Op]) -> dict[Op, list[Op]]:
    """For each op with an effect, the earlier ones of ``ops`` that must stay before it."""
    last_write: dict[Value, Op] = {}
    reads: dict[Value, list[Op]] = {}
    waits: dict[Op, list[Op]] = {}
    for op in ops:
        if not (op.has(Trait.READS) or op.has(Trait.WRITES)):
            continue
        for value in dict.fromkeys(op.operands):
            if value.owner is not None:
                continue
            if value in last_write:
                waits.setdefault(op, []).append(last_write[value])
            if op.has(Trait.WRITES) and str(value.type).startswith("buffer"):
                waits.setdefault(op, []).extend(reads.pop(value, []))
                last_write[value] = op
            else:
                reads.setdefault(value, []).append(op)
    return waits


def _record(
    rewrite: Rewrite[Any],
    root: Op,
    change: Replace,
    run: Run,
    new: Sequence[Op],
    removed: Sequence[Op],
    name: str,
) -> Applied:
    replaced = (run.owners.get(op) for op in (root, *removed))
    record = Applied(
        number=len(run.applied) + 1,
        rewrite=rewrite.name,
        pattern=rewrite.pattern,
        where=root.loc,
        held=tuple(change.held),
        details=dict(change.details),
        before=_total(removed),
        after=_total(new),
        ops=tuple(new),
        work=change.work,
        name=name,
        needs=tuple(sorted({made.number for made in replaced if made is not None})),
        removed=tuple(removed),
        values=dict(change.values),
    )
    whole = _whole(run, removed)
    if whole is not None:
        record.owner = whole
        whole.swallowed.append(record)
    for op in removed:
        owner = _outermost(run.owners.pop(op, None))
        if owner is None or owner is record or _works(run, owner):
            continue
        if change.keep_sites and owner.pattern == record.pattern:
            owner.ops = (*owner.ops, *new)
        else:
            owner.owner = record
            record.swallowed.append(owner)
    run.owners |= dict.fromkeys(new, record)
    run.applied.append(record)
    if not rewrite.pattern and new:
        _carry_misses(run, removed, new[-1])
    if not record.pattern and len(record.swallowed) == 1:
        _inherit(record)
    return record


def _outermost(record: Applied | None) -> Applied | None:
    """The rewrite that a rewrite's work counts under."""
    while record is not None and record.owner is not None:
        record = record.owner
    return record


def _whole(run: Run, removed: Sequence[Op]) -> Applied | None:
    """The living site that everything which a rewrite replaces is a part of; None without one."""
    owners = [_outermost(run.owners.get(op)) for op in removed if not _is_aside(op)]
    whole = owners[0] if owners else None
    if whole is None or not whole.pattern or any(owner is not whole for owner in owners):
        return None
    return whole if _works(run, whole) else None


def _carry_misses(run: Run, removed: Sequence[Op], op: Op) -> None:
    """What was missed stays missed where a clean-up or a lowering puts other ops in its place."""
    for old in removed:
        for key in [key for key in run.missed if key[1] is old]:
            miss = run.missed.pop(key)
            run.missed.setdefault((miss.pattern, op), replace(miss, op=op))


def _works(run: Run, record: Applied) -> bool:
    """Whether an op of a rewrite is still there; operands made for it by the way do not count.

    Views, and element-wise ops such as the cosines of a table, may outlive what read them first.
    """
    return any(op in run.func and not _is_aside(op) for op in record.ops)


def _is_aside(op: Op) -> bool:
    return op.has(Trait.VIEW) or op.has(Trait.POINTWISE) or op.name in _BY_THE_WAY


def _inherit(record: Applied) -> None:
    """A clean-up that replaced the ops of a site carries that site on."""
    inner = record.swallowed[0]
    record.pattern, record.where = inner.pattern, inner.where
    record.details = inner.details | record.details
    record.swallowed = inner.swallowed


def _total(ops: Iterable[Op]) -> Cost:
    total = Cost(0, 0)
    for op in ops:
        total = total + op.cost()
    return Cost(dim(total.bytes), dim(total.flops))


def _snapshot(func: Func) -> tuple[object, ...]:
    """Enough of a func to tell whether a pass changed it: ops, operands and returns."""
    ops = tuple((id(op), op.operands) for op in func.ops)
    return (ops, func.returns, tuple(func.args), dict(func.symbols))
