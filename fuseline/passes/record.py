"""The record of what passes did to a func: every rewrite, what it replaced, and every miss.

Sites, remarks, dumps, reports, bisecting and the fuse limit all read this record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fuseline.ir.core import Cost, Func, Loc, Op, Trait, Value
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.types import dim, format_dim
from fuseline.passes.gate import Names
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.report import PassRecord, Site

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
    shared: set[Op] = field(default_factory=set[Op])
    """Ops that outlived something they were made for, in the pass that runs: see `attribute`."""

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


def note_miss(rewrite: Rewrite[Any], op: Op, outcome: NoMatch, run: Run) -> None:
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


def note_applied(
    rewrite: Rewrite[Any],
    root: Op,
    change: Replace,
    run: Run,
    new: Sequence[Op],
    removed: Sequence[Op],
    name: str,
) -> Applied:
    """Note a rewrite that was applied, and which earlier ones count under it from now on."""
    replaced = (run.owners.get(op) for op in (root, *removed))
    record = Applied(
        number=len(run.applied) + 1,
        rewrite=rewrite.name,
        pattern=rewrite.pattern,
        where=_place(root, change, new, run.func),
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


def _place(root: Op, change: Replace, new: Sequence[Op], func: Func) -> Loc | None:
    """The place of a rewrite: that of its root.

    A root may stay: an attention whose queries are rotated in another way. Then it is the place of
    the op that does the work now.
    """
    if root not in func:
        return root.loc
    working = [op for op in new if not op.has(Trait.VIEW)] or new
    work = change.work or (working[-1] if working else root)
    return work.loc or root.loc


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


__all__ = ["Applied", "Missed", "Run", "note_applied", "note_miss"]
