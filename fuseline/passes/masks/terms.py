"""A mask taken apart into the values whose conjunction it is.

Transformers' mask functions and most others build a mask as ``a & b & c``, expand it, and may turn
it into numbers to add. `split` goes back through that: what it gives are *terms*, each an existing
value that lines up with the scores at the last dim, so that some of them can be kept and others
dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise, view
from fuseline.ir.types import Dim, DType
from fuseline.passes.masks.arithmetic import constant, number_of
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.expressions import Expression, Number, Opaque, Pick, as_condition
from fuseline.passes.masks.integers import Linear
from fuseline.passes.masks.predicates import FALSE, TRUE, Condition, negate, pick_condition

HIDING = -65504.0
"""Scores at or below this count as hidden: the least number of f16, and those of wider types.

A hidden score has no weight as long as a visible one is not some 65000 below it; where a row sees
no key at all, a finite fill leaves equal weights, and -inf none (`fuseline.passes.masks.prove`).
"""


@dataclass(frozen=True)
class Applied:
    """One application of a mask to the scores.

    Attributes:
        value: what lines up with the scores ``[B, H, Sq, Sk]`` at the last dim.
        how: ``"keep"``: scores stay where ``value`` is true; ``"hide"``: where it is false;
            ``"add"``: ``value`` is added to them.
        fill: what the other scores become; unused for ``"add"``.
    """

    value: Value
    how: str
    fill: float = -math.inf


@dataclass(frozen=True)
class Term:
    """A part of a mask: a bool value that says what is visible (``"keep"``) or not, or numbers."""

    value: Value
    how: str
    fill: float = -math.inf

    def condition(self, elements: Elements, place: Sequence[Linear]) -> Condition | None:
        """What is visible; None where the term is not a condition but arbitrary numbers."""
        found = elements.broadcast_at(self.value, place)
        if self.how == "add":
            return _visible(found)
        try:
            condition = as_condition(found, elements.bounds)
        except Opaque:
            return None
        return condition if self.how == "keep" else negate(condition)


def split(applied: Applied, elements: Elements, place: Sequence[Linear]) -> list[Term]:
    """The terms of a mask; what hides with different numbers keeps its own fill."""
    term = Term(applied.value, applied.how, applied.fill)
    if applied.how == "add":
        return list(_added(term.value, elements, place))
    return list(_conjunction(term))


def _conjunction(term: Term) -> Iterator[Term]:
    """The terms of a bool value: its conjuncts, or the disjuncts of what it hides."""
    op = term.value.owner
    conjunction = (pointwise.LogicalAnd, pointwise.BitwiseAnd)
    disjunction = (pointwise.LogicalOr, pointwise.BitwiseOr)
    if op is None or any(v.dtype is not DType.BOOL for v in op.operands):
        yield term
    elif isinstance(op, conjunction if term.how == "keep" else disjunction):
        for value in op.operands:
            yield from _conjunction(replace(term, value=value))
    elif isinstance(op, (pointwise.LogicalNot, pointwise.BitwiseNot)):
        how = "hide" if term.how == "keep" else "keep"
        yield from _conjunction(replace(term, value=op.x, how=how))
    elif (inner := lined_up(term.value)) is not None:
        yield from _conjunction(replace(term, value=inner))
    else:
        yield term


def _added(value: Value, elements: Elements, place: Sequence[Linear]) -> Iterator[Term]:
    """The terms of numbers that are added to the scores."""
    match value.owner:
        case pointwise.Add(lhs, rhs) if lhs.dtype is rhs.dtype is value.dtype:
            yield from _added(lhs, elements, place)
            yield from _added(rhs, elements, place)
        case pointwise.Where(condition, lhs, rhs):
            sides = [_number(v, value.dtype, elements, place) for v in (lhs, rhs)]
            match sides:
                case [0.0, float(fill)] if fill <= HIDING:
                    yield from _conjunction(Term(condition, "keep", fill))
                case [float(fill), 0.0] if fill <= HIDING:
                    yield from _conjunction(Term(condition, "hide", fill))
                case _:
                    yield _numbers(value, elements, place)
        case _ if (inner := lined_up(value)) is not None:
            yield from _added(inner, elements, place)
        case _:
            yield _numbers(value, elements, place)


def _numbers(value: Value, elements: Elements, place: Sequence[Linear]) -> Term:
    fills = _fills(elements.broadcast_at(value, place))
    return Term(value, "add", max(fills, default=-math.inf))


def _number(
    value: Value, dtype: DType, elements: Elements, place: Sequence[Linear]
) -> float | None:
    found = number_of(elements.broadcast_at(value, place))
    if found is None:
        return None
    rounded = constant(found, dtype)
    return rounded.value if isinstance(rounded, Number) else None


def lined_up(value: Value) -> Value | None:
    """What a value repeats along new or unit dims: the operand of an expand, or of leading 1s."""
    match value.owner:
        case view.Expand(x):
            return x
        case view.Reshape(x) if _stripped(x.shape) == _stripped(value.shape):
            return x
        case _:
            return None


def _stripped(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    leading = next((i for i, extent in enumerate(shape) if extent != 1), len(shape))
    return tuple(shape[leading:])


def _fills(expr: Expression) -> set[float]:
    """The hiding numbers in a choice."""
    if isinstance(expr, Pick):
        return _fills(expr.lhs) | _fills(expr.rhs)
    return {expr.value} if isinstance(expr, Number) and expr.value <= HIDING else set()


def _visible(expr: Expression) -> Condition | None:
    """Where added numbers are 0, if they hide everywhere else."""
    match expr:
        case Number(0.0):
            return TRUE
        case Number(value) if value <= HIDING:
            return FALSE
        case Pick(condition, lhs, rhs):
            left, right = _visible(lhs), _visible(rhs)
            if left is None or right is None:
                return None
            return pick_condition(condition, left, right)
        case _:
            return None
