"""What became of ops: which ops that are there after all passes stand for those that were before.

Rewrites are recorded with what they replace. Passes over a whole func are not: there an op became
what its readers read now, or a part of them where they went, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.passes.record import Applied

Readings = Mapping[Op, tuple[Value, ...]]
"""What each op of a func read."""


class Lineage:
    """Follows ops through passes, in the order in which these ran."""

    def __init__(self) -> None:
        self._next: dict[Op, tuple[Op, ...]] = {}

    def forget(self) -> None:
        """Let go of the ops: nobody is to ask any more."""
        self._next.clear()

    def rewritten(self, applied: Iterable[Applied]) -> None:
        """Rewrites, each of which put some ops in the place of others."""
        for each in applied:
            work = [op for op in each.ops if not op.has(Trait.VIEW)] or list(each.ops)
            main = each.work or (work[-1] if work else None)
            single = sum(not op.has(Trait.VIEW) for op in each.removed) == 1
            for op in each.removed:
                new = [each.values[v] for v in op.results if v in each.values]
                makers = [m for v in new if (m := _maker(v, each.ops)) is not None]
                if single and len(work) > 1 and not op.has(Trait.VIEW):
                    makers = work  # which took it apart
                if not makers and main is not None:
                    makers = [main]
                if not makers:
                    makers = [v.owner for v in each.values.values() if v.owner is not None]
                self._next[op] = tuple(dict.fromkeys(makers))

    def edited(self, before: Readings, func: Func) -> None:
        """A pass over a whole func, whose ops read something else before it."""
        gone = {value: op for op in before if op not in func for value in op.results}
        found: dict[Op, dict[Op, None]] = {op: {} for op in gone.values()}
        for op, values in before.items():
            if op not in func:
                now: Sequence[Op | None] = [op] * len(values)
            elif len(op.operands) == len(values):
                now = [v.owner for v in op.operands]
            else:
                now = [op] * len(values)
            for value, maker in zip(values, now, strict=True):
                if value in gone and maker is not None:
                    found[gone[value]][maker] = None
        self._next |= {op: tuple(makers) for op, makers in found.items() if makers}

    def standing(self, op: Op, func: Func) -> tuple[Op, ...]:
        """The ops of a func that an earlier op became, or a part of; none where it was dropped."""
        found: dict[Op, None] = {}
        seen: set[Op] = set()
        stack = [op]
        while stack:
            each = stack.pop()
            if each in seen:
                continue
            seen.add(each)
            if each in func:
                found[each] = None
            else:
                stack += reversed(self._next.get(each, ()))
        return tuple(found)


def _maker(value: Value, new: Sequence[Op]) -> Op | None:
    """The op that makes a value, behind views that came with it."""
    op = value.owner
    while op is not None and op in new and op.has(Trait.VIEW) and op.operands:
        behind = op.operands[0].owner
        if behind is None or behind not in new:
            break
        op = behind
    return op


__all__ = ["Lineage", "Readings"]
