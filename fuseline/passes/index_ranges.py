"""Comparisons and bounds that the origin of an index decides: a choice among n is below n."""

from __future__ import annotations

import operator
from collections.abc import Callable

from fuseline.ir.core import Value
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.index import Gather, Index
from fuseline.ir.ops.pointwise import (
    Binary,
    Cast,
    Compare,
    Eq,
    Ge,
    Gt,
    Le,
    Lt,
    Maximum,
    Minimum,
    Ne,
)
from fuseline.ir.ops.reduce import Sort, TopK
from fuseline.ir.ops.view import Expand, Permute, Reshape, Slice
from fuseline.ir.types import DType
from fuseline.passes.constants import number
from fuseline.passes.sweep import Rules

RULES = Rules()

_COMPARISONS: dict[type[Compare], Callable[[int, float], bool]] = {
    Lt: operator.lt,
    Le: operator.le,
    Gt: operator.gt,
    Ge: operator.ge,
    Eq: operator.eq,
    Ne: operator.ne,
}


def index_range(value: Value) -> tuple[int, int] | None:
    """The smallest and the largest number that an index can be, where its origin bounds it."""
    match value.owner:
        case TopK(x=x, axis=axis, indices=indices) if value is indices:
            return _below(x.shape[axis])
        case Sort(x=x, axis=axis, indices=indices) if value is indices:
            return _below(x.shape[axis])
        case TopK(x=x) | Sort(x=x) | Gather(x=x) | Index(x=x):
            return index_range(x)
        case Reshape(x=x) | Permute(x=x) | Expand(x=x) | Slice(x=x):
            return index_range(x)
        case Cast(x=x, dtype=DType.I32 | DType.I64):
            return index_range(x)
        case Iota(length=int(length), start=int(start), step=int(step)) if length > 0:
            ends = (start, start + (length - 1) * step)
            return min(ends), max(ends)
        case _:
            return None


def _below(extent: object) -> tuple[int, int] | None:
    return (0, extent - 1) if isinstance(extent, int) and extent > 0 else None


@RULES.rule(*_COMPARISONS)
def decide_comparison(op: Compare) -> Value | None:
    """``i >= n`` is false, where i was chosen among n or fewer."""
    bound, ends = number(op.rhs), index_range(op.lhs)
    if bound is None or ends is None:
        return None
    answers = {_COMPARISONS[type(op)](end, bound) for end in ends}
    inside = type(op) in (Eq, Ne) and ends[0] <= bound <= ends[1]
    if len(answers) > 1 or inside:
        return None
    return Full(value=answers.pop(), shape=op.y.shape, dtype=DType.BOOL).y


@RULES.rule(Maximum, Minimum)
def drop_bound(op: Binary) -> Value | None:
    """``minimum(i, n - 1)`` is i, where i was chosen among n or fewer."""
    bound, ends = number(op.rhs), index_range(op.lhs)
    if bound is None or ends is None or op.lhs.type != op.y.type:
        return None
    keeps = bound <= ends[0] if isinstance(op, Maximum) else bound >= ends[1]
    return op.lhs if keeps else None
