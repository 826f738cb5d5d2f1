"""Applies rewrites: new ops are put in and old ones erased, and effects keep their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuseline.ir.core import Func, IRError, Op, Trait, Value
from fuseline.passes.attribute import attribute
from fuseline.passes.dce import has_effect
from fuseline.passes.record import Applied, Run, note_applied
from fuseline.passes.rewrite import Replace, Replacement, Rewrite


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


def apply(
    rewrite: Rewrite[Any], root: Op, outcome: Replacement, run: Run, name: str = ""
) -> Change:
    """Put a rewrite's new ops in, redirect readers, erase what died, and record it."""
    change = outcome if isinstance(outcome, Replace) else Replace(outcome)
    func = run.func
    new = _new_ops(func, [*change.values.values()], change.ops)
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
    attribute(func, root, change, new, removed, run.shared)
    if not _in_order(func, new):
        func.reorder(schedule(func, *_window(func, new)))
    done = note_applied(rewrite, root, change, run, new, removed, name)
    return Change(done, change.values, removed)


def last_replaced(root: Op, outcome: Replacement, func: Func) -> Op:
    """The last op of those that a rewrite replaces, wherever it started from; the root if none."""
    change = outcome if isinstance(outcome, Replace) else Replace(outcome)
    ops = [*change.erase, *(v.owner for v in change.values if v.owner is not None)]
    return max(ops, key=func.places.__getitem__, default=root)


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


__all__ = ["Change", "apply", "effect_edges", "erase_dead", "last_replaced", "schedule"]
