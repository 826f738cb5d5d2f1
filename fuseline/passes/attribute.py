"""Which places of the user's program the new ops of a rewrite come from.

A new op has the places of the ops whose work it does: those between what it reads and the values
that it replaces. What merely dies with them is not part of it: a mask that is no longer read, say,
computed beside all layers and for all of them; nor are a constant and whatever led to it. Of
several new values each has the places of what it replaces. A view beside an op that computes has
none of them, nor has an operand that the rewrite copied, with its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fuseline.ir.core import Func, Loc, Op, Trait, Value
from fuseline.passes.rewrite import Replace
from fuseline.report_tables import folded

MOST = 8
"""An op that has more places has those of one line as one, such as ``experts.0..63.up_proj``."""

_NOWHERE = Loc()


def attribute(
    func: Func,
    root: Op,
    change: Replace,
    new: Sequence[Op],
    removed: Sequence[Op],
    shared: set[Op],
) -> None:
    """Give new ops their places: that of the root, or of what they replace, and all of it.

    Args:
        func: as the rewrite left it.
        root: where the rewrite started.
        change: what it gave.
        new: its ops.
        removed: the ops that are gone, each behind those that read it.
        shared: ops that outlived a reader whose work was replaced without them: where they go with
            their last reader, they were not made for it alone. Added to.

    """
    bare = {op for op in new if op.loc is None}
    made = set(new)
    read = {v for op in new for v in op.operands}
    fed = _fed([op for op in reversed(removed) if op not in shared], read, made)
    for target, old in _heads(change, made).items() if removed else ():
        if target in bare and root in func:
            target.loc = next((op.loc for op in old if op.loc is not None), None)
        near = _behind([target], made - _others(change, target)) if len(new) > 1 else made
        parts = [op for op in new if op is target or (op in near and op in bare)]
        working = [op for op in parts if not op.has(Trait.VIEW)]
        gone = _behind(old, fed)
        places = [at for op in reversed(removed) if op in gone for at in op.sources]
        for op in new:
            if op in bare:
                op.loc = op.loc or root.loc
            if op in (working or parts):
                _add(op, places)
    for op in bare:
        op.loc = op.loc or root.loc
    for op in removed:
        for value in op.operands:
            maker = value.owner
            if maker is not None and maker not in made and value not in read and maker in func:
                shared.add(maker)


def _fed(removed: Iterable[Op], read: set[Value], made: set[Op]) -> set[Op]:
    """Those of some ops, in order, that lead on from what new ops read, or give."""
    found: set[Op] = set()
    for op in removed:
        if any(v in read or v.owner in made or v.owner in found for v in op.operands):
            found.add(op)
    return found


def _heads(change: Replace, made: set[Op]) -> dict[Op, list[Op]]:
    """The new ops that stand for old ones, and which."""
    found: dict[Op, list[Op]] = {}
    for old, value in change.values.items():
        if value.owner in made and old.owner is not None:
            found.setdefault(value.owner, []).append(old.owner)
    if change.erase:
        for op in [op for op in change.ops if op in made] or list(found):
            found.setdefault(op, []).extend(change.erase)
    return found


def _others(change: Replace, target: Op) -> set[Op]:
    """The owners of the other new values."""
    return {v.owner for v in change.values.values() if v.owner not in (None, target)}


def _behind(ends: Iterable[Op], inside: set[Op]) -> set[Op]:
    """Those of some ops that lead to one of the ends, and these."""
    found: set[Op] = set()
    stack = list(ends)
    while stack:
        op = stack.pop()
        if op not in found:
            found.add(op)
            stack += [v.owner for v in op.operands if v.owner in inside]
    return found


def _add(op: Op, places: Iterable[Loc]) -> None:
    """Add places to an op's; many of one line become one."""
    found = dict.fromkeys((*op.also, *places))
    for known in (_NOWHERE, *op.sources[:1]):
        found.pop(known, None)
    op.also = tuple(found) if len(found) < MOST else tuple(_folded(found))


def _folded(places: Iterable[Loc]) -> Iterable[Loc]:
    by_source: dict[str, list[str]] = {}
    for at in places:
        by_source.setdefault(at.source, []).append(at.module)
    return [
        Loc(module, source) for source, modules in by_source.items() for module in folded(modules)
    ]


__all__ = ["attribute"]
