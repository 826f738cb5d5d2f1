"""What an element of any tensor is: an integer, a condition, a number, or a choice between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fuseline.ir.core import Value
from fuseline.passes.masks.bounds import Bounds
from fuseline.passes.masks.integers import ONE, ZERO, Linear
from fuseline.passes.masks.predicates import (
    AllOf,
    AnyOf,
    AtLeastZero,
    Condition,
    IsZero,
    Known,
    Not,
    Truth,
    is_zero,
    known,
    negate,
    pick_condition,
    pinned_to_zero,
    put_zero,
)

Expression: TypeAlias = "Linear | Condition | Number | Datum | Pick"

CONDITIONS = (Known, AtLeastZero, IsZero, Truth, Not, AllOf, AnyOf)
"""The classes of `Condition`."""


@dataclass(frozen=True)
class Number:
    """A floating-point constant."""

    value: float


@dataclass(frozen=True)
class Datum:
    """An element of a floating-point tensor of which nothing more is known."""

    value: Value
    at: tuple[Linear, ...]


@dataclass(frozen=True)
class Pick:
    """``lhs`` where the condition holds, else ``rhs``; both integers, or both floating."""

    condition: Condition
    lhs: Expression
    rhs: Expression


class Opaque(Exception):
    """An element that these expressions cannot hold: the caller takes it as data."""


def pick(condition: Condition, lhs: Expression, rhs: Expression) -> Expression:
    """``lhs`` where the condition holds, else ``rhs``, simplified."""
    if isinstance(condition, Known):
        return lhs if condition.value else rhs
    if lhs == rhs:
        return lhs
    if isinstance(lhs, CONDITIONS) and isinstance(rhs, CONDITIONS):
        return pick_condition(condition, lhs, rhs)
    at = pinned_to_zero(condition)
    if at is not None and isinstance(lhs, Linear) and isinstance(rhs, Linear):
        here = put_zero(rhs, at)
        if here is not None and here == put_zero(lhs, at):
            return rhs
    return Pick(condition, lhs, rhs)


def lift(call: Callable[..., Expression], *args: Expression) -> Expression:
    """Apply a function to expressions, inside of their choices."""
    for arg in args:
        if isinstance(arg, Pick):
            left, right = (
                lift(call, *(_side(a, arg.condition, which) for a in args))
                for which in (True, False)
            )
            return pick(arg.condition, left, right)
    return call(*args)


def _side(expr: Expression, condition: Condition, which: bool) -> Expression:
    if isinstance(expr, Pick) and expr.condition == condition:
        return expr.lhs if which else expr.rhs
    return expr


def as_integer(expr: Expression) -> Expression:
    """A condition as 0 or 1; an integer as it is."""
    if isinstance(expr, CONDITIONS):
        return pick(expr, ONE, ZERO)
    return expr


def as_condition(expr: Expression, bounds: Bounds) -> Condition:
    """Whether an element is not zero.

    Raises:
        Opaque: this is not known to be a condition.

    """

    def nonzero(leaf: Expression) -> Expression:
        match leaf:
            case Linear():
                return negate(is_zero(leaf, bounds))
            case Number(value):
                return known(value != 0)
            case Datum(value, at):
                return Truth(value, at)
            case Pick():
                raise Opaque
            case _:
                return leaf

    found = lift(nonzero, expr)
    if not isinstance(found, CONDITIONS):
        raise Opaque
    return found


def as_linear(expr: Expression) -> Linear:
    """An integer without choices.

    Raises:
        Opaque: it is something else.

    """
    if not isinstance(expr, Linear):
        raise Opaque
    return expr
