"""From one product of experts to the other, over the element-wise ops and views between them."""

from __future__ import annotations

from collections.abc import Iterator

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.view import Reshape, Slice

VIEWS: tuple[type[Op], ...] = (Slice, Reshape)
"""The views that experts have between their products, as a rule."""


def ops_before(value: Value, views: tuple[type[Op], ...] = VIEWS) -> Iterator[Op]:
    """The ops that a value is made of, in the order of their reading.

    The way ends at ops that may not stand between, which are among them.
    """
    stack, seen = [value.owner], set[Op]()
    while stack:
        op = stack.pop()
        if op is None or op in seen:
            continue
        seen.add(op)
        yield op
        if _may_stand_between(op, views):
            stack += [v.owner for v in reversed(op.operands)]


def ops_after(
    func: Func, value: Value, views: tuple[type[Op], ...] = VIEWS
) -> Iterator[tuple[Op, Value]]:
    """The ops that read a value or what is made of it, and what they read; see `ops_before`."""
    stack, seen = [value], set[Op]()
    while stack:
        current = stack.pop()
        for user in func.users(current):
            if user in seen:
                continue
            seen.add(user)
            yield user, current
            if _may_stand_between(user, views):
                stack += user.results


def _may_stand_between(op: Op, views: tuple[type[Op], ...]) -> bool:
    return op.has(Trait.POINTWISE) or isinstance(op, views)
