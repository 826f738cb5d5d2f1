"""Conditions on indices: what an element of a bool tensor says, in a normal form.

Conditions are built by the functions of this module, which simplify as they go: comparisons that
hold or fail for every index become `TRUE` or `FALSE`, negations move inwards, and a comparison
with the larger of two expressions becomes two comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from fuseline.ir.core import Value
from fuseline.passes.masks.bounds import Bounds
from fuseline.passes.masks.integers import (
    ZERO,
    Index,
    Larger,
    Linear,
    atom_indices,
    of_atom,
    show_element,
)

Condition: TypeAlias = "Known | AtLeastZero | IsZero | Truth | Not | AllOf | AnyOf"


@dataclass(frozen=True)
class Known:
    """Always or never."""

    value: bool

    def __str__(self) -> str:
        return "true" if self.value else "false"


@dataclass(frozen=True)
class AtLeastZero:
    """``of >= 0``."""

    of: Linear

    def __str__(self) -> str:
        return _comparison(self.of, "<=")


@dataclass(frozen=True)
class IsZero:
    """``of == 0``."""

    of: Linear

    def __str__(self) -> str:
        return _comparison(self.of, "==")


@dataclass(frozen=True)
class Truth:
    """An element of a bool tensor (or a float one: not zero) of which nothing more is known."""

    value: Value
    at: tuple[Linear, ...]

    def __str__(self) -> str:
        return show_element(self.value, self.at)


@dataclass(frozen=True)
class Not:
    """The negation of a condition that has no simpler one."""

    of: IsZero | Truth

    def __str__(self) -> str:
        return str(self.of).replace("==", "!=") if isinstance(self.of, IsZero) else f"not {self.of}"


@dataclass(frozen=True)
class AllOf:
    """Every one of several conditions."""

    parts: frozenset[Condition]

    def __str__(self) -> str:
        return " and ".join(sorted(map(_bracketed, self.parts)))


@dataclass(frozen=True)
class AnyOf:
    """At least one of several conditions."""

    parts: frozenset[Condition]

    def __str__(self) -> str:
        return " or ".join(sorted(map(_bracketed, self.parts)))


TRUE = Known(True)
FALSE = Known(False)


def _bracketed(part: Condition) -> str:
    return f"({part})" if isinstance(part, (AllOf, AnyOf)) else str(part)


def _comparison(expr: Linear, sign: str) -> str:
    """``expr >= 0`` with what is subtracted on the left."""
    left = Linear(0, frozenset((a, -c) for a, c in expr.terms if c < 0))
    return f"{left} {sign} {expr + left}"


def known(value: bool) -> Known:
    """`TRUE` or `FALSE`."""
    return TRUE if value else FALSE


def at_least_zero(expr: Linear, bounds: Bounds) -> Condition:
    """``expr >= 0``."""
    if bounds.nonnegative(expr):
        return TRUE
    if bounds.nonnegative((-expr).plus(-1)):
        return FALSE
    for atom, coefficient in expr.terms:
        if isinstance(atom, Larger):
            rest = expr - of_atom(atom).times(coefficient)
            cases = [
                at_least_zero(rest + side.times(coefficient), bounds)
                for side in (atom.lhs, atom.rhs)
            ]
            return any_of(cases) if coefficient > 0 else all_of(cases)
    return AtLeastZero(expr)


def is_zero(expr: Linear, bounds: Bounds) -> Condition:
    """``expr == 0``."""
    if expr == ZERO:
        return TRUE
    if bounds.nonnegative(expr.plus(-1)) or bounds.nonnegative((-expr).plus(-1)):
        return FALSE
    return min(IsZero(expr), IsZero(-expr), key=str)


def negate(condition: Condition) -> Condition:
    """The opposite condition."""
    match condition:
        case Known(value):
            return known(not value)
        case AtLeastZero(of):
            return AtLeastZero((-of).plus(-1))
        case Not(of):
            return of
        case AllOf(parts):
            return any_of(map(negate, parts))
        case AnyOf(parts):
            return all_of(map(negate, parts))
        case IsZero() | Truth():
            return Not(condition)


def all_of(conditions: Iterable[Condition]) -> Condition:
    """The conjunction."""
    parts: dict[Condition, None] = {}
    for condition in conditions:
        if condition == FALSE:
            return FALSE
        if isinstance(condition, AllOf):
            parts.update(dict.fromkeys(condition.parts))
        elif condition != TRUE:
            parts[condition] = None
    if len(parts) > 1:
        return AllOf(frozenset(parts))
    return next(iter(parts), TRUE)


def any_of(conditions: Iterable[Condition]) -> Condition:
    """The disjunction."""
    parts: dict[Condition, None] = {}
    for condition in conditions:
        if condition == TRUE:
            return TRUE
        if isinstance(condition, AnyOf):
            parts.update(dict.fromkeys(condition.parts))
        elif condition != FALSE:
            parts[condition] = None
    if any(negate(p) in parts for p in parts if not isinstance(p, (AllOf, AnyOf))):
        return TRUE
    if len(parts) > 1:
        return AnyOf(frozenset(parts))
    return next(iter(parts), FALSE)


def pick_condition(condition: Condition, lhs: Condition, rhs: Condition) -> Condition:
    """``lhs`` where the condition holds, else ``rhs``."""
    return any_of([all_of([condition, lhs]), all_of([negate(condition), rhs])])


def conjuncts(condition: Condition) -> tuple[Condition, ...]:
    """The conditions that must all hold, in a fixed order."""
    if isinstance(condition, AllOf):
        return tuple(sorted(condition.parts, key=str))
    return () if condition == TRUE else (condition,)


def indices(condition: Condition) -> set[str]:
    """The names of the indices that a condition reads."""
    match condition:
        case Known():
            return set()
        case AtLeastZero(of) | IsZero(of):
            return of.indices()
        case Truth(_, at):
            return {name for expr in at for name in expr.indices()}
        case Not(of):
            return indices(of)
        case AllOf(parts) | AnyOf(parts):
            return {name for part in parts for name in indices(part)}


def pinned_to_zero(condition: Condition) -> Index | None:
    """The index that a condition holds at its first place only, such as ``-i >= 0``."""
    if not isinstance(condition, AtLeastZero) or condition.of.const != 0:
        return None
    if len(condition.of.terms) != 1:
        return None
    ((atom, coefficient),) = condition.of.terms
    return atom if isinstance(atom, Index) and coefficient < 0 else None


def put_zero(expr: Linear, at: Index) -> Linear | None:
    """An expression with an index put to 0; None where the index occurs inside an atom."""
    rest = expr - of_atom(at).times(expr.coefficient(at))
    nested = any(at.name in atom_indices(atom) for atom, _ in rest.terms)
    return None if nested else rest
