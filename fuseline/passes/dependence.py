"""Whether one op depends on another: what a fusion of both must know, or it would close a cycle."""

from __future__ import annotations

from collections.abc import Iterable

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.types import BufferType


def depends(func: Func, values: Iterable[Value], on: Iterable[Op]) -> bool:
    """Whether any of ``values`` is made by an op of ``on``, or by one that needs such a result.

    A read of a buffer needs the earlier writes of it. Looks only at ops from the first one of
    ``on`` on: program order is a valid order, so what comes before cannot depend on it.
    """
    targets = set(on)
    if not targets:
        return False
    place = func.places
    first = min(place[op] for op in targets)
    stack = [v.owner for v in values if v.owner is not None]
    seen: set[Op] = set()
    while stack:
        op = stack.pop()
        if op in targets:
            return True
        if op in seen or place.get(op, first) < first:
            continue
        seen.add(op)
        stack += [v.owner for v in op.operands if v.owner is not None]
        if op in place:
            stack += [w for w in _writers(func, op) if place[w] < place[op]]
    return False


def _writers(func: Func, op: Op) -> list[Op]:
    """The ops that write a buffer which this one reads or writes."""
    if not (op.has(Trait.READS) or op.has(Trait.WRITES)):
        return []
    buffers = [v for v in op.operands if isinstance(v.type, BufferType)]
    return [w for b in buffers for w in func.users(b) if w.has(Trait.WRITES)]
