"""Proofs that integer expressions are never negative, and what such proofs simplify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from fuseline.ir.types import Range
from fuseline.passes.masks.integers import (
    ZERO,
    Atom,
    Element,
    Index,
    Larger,
    Linear,
    Product,
    Quotient,
    Size,
    of_atom,
)


class Bounds:
    """Proves expressions non-negative from the ranges of symbols and indices, and from facts.

    Args:
        ranges: of the dim symbols, by name; a symbol that is not there is non-negative.

    """

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self.ranges = ranges
        self.facts: list[Linear] = []
        """Expressions that are known not to be negative, such as positions that were written to."""
        self._known: dict[Linear, bool] = {}

    def nonnegative(self, expr: Linear) -> bool:
        """Whether the expression is at least 0, whatever its atoms are."""
        if not expr.terms:
            return expr.const >= 0
        known = self._known.get(expr)
        if known is None:
            known = self._known[expr] = self._prove(expr, 2)
        return known

    def settle(self, expr: Linear) -> Linear:
        """The expression with one side in place of each `Larger` whose order is known."""
        for atom, coefficient in expr.terms:
            if isinstance(atom, Larger):
                known = larger(atom.lhs, atom.rhs, self)
                if known != of_atom(atom):
                    rest = expr - of_atom(atom).times(coefficient)
                    return self.settle(rest + known.times(coefficient))
        return expr

    def nonnegative_by_facts(self, expr: Linear) -> bool:
        """The same, with one of the facts as a further premise."""
        return self.nonnegative(expr) or any(self.nonnegative(expr - f) for f in self.facts)

    def _prove(self, expr: Linear, depth: int) -> bool:
        if self._least(self._at_worst(expr)) >= 0:
            return True
        if not depth:
            return False
        for atom, coefficient in expr.terms:
            if isinstance(atom, Larger):
                rest = expr - of_atom(atom).times(coefficient)
                cases = (rest + side.times(coefficient) for side in (atom.lhs, atom.rhs))
                enough: Callable[[Iterable[bool]], bool] = any if coefficient > 0 else all
                return enough(self._prove(case, depth - 1) for case in cases)
        return False

    def _at_worst(self, expr: Linear) -> Linear:
        """Each index at the end of its range where the expression is smallest."""
        worst = expr
        for atom, coefficient in expr.terms:
            if isinstance(atom, Index):
                at = ZERO if coefficient > 0 else atom.extent.plus(-1)
                worst = worst - of_atom(atom).times(coefficient) + at.times(coefficient)
        return worst

    def _least(self, expr: Linear) -> float:
        return expr.const + sum(c * self._end(a, c > 0) for a, c in expr.terms)

    def _end(self, atom: Atom, low: bool) -> float:
        """The lower or upper end of an atom's range."""
        match atom:
            case Size(name):
                limits = self.ranges.get(name, Range())
                high = float("inf") if limits.hi is None else limits.hi
                return limits.lo if low else high
            case Product(names):
                ends = [self._end(Size(name), low) for name in names]
                result = 1.0
                for end in ends:
                    result = 0.0 if end == 0 or result == 0 else result * end
                return result
            case Quotient(of, by):
                end = self._least(self._at_worst(of)) if low else -self._least(self._at_worst(-of))
                return end // by if abs(end) != float("inf") else end
            case Larger(lhs, rhs):
                if low:
                    return max(self._least(self._at_worst(side)) for side in (lhs, rhs))
                return max(-self._least(self._at_worst(-side)) for side in (lhs, rhs))
            case Index(_, extent):
                return 0 if low else -self._least((-extent).plus(1))
            case Element():
                return float("-inf") if low else float("inf")


def quotient(of: Linear, by: int, bounds: Bounds) -> Linear:
    """``of // by`` rounded down, multiples of ``by`` taken out; ``by`` is positive."""
    if by == 1:
        return of
    whole = Linear(of.const // by, frozenset((a, c // by) for a, c in of.terms if c % by == 0))
    rest = of - whole.times(by)
    if bounds.nonnegative(rest) and bounds.nonnegative(-rest.plus(1 - by)):
        return whole
    return whole + of_atom(Quotient(rest, by))


def larger(lhs: Linear, rhs: Linear, bounds: Bounds) -> Linear:
    """The larger of two expressions; one of them where the order is known."""
    if bounds.nonnegative(lhs - rhs):
        return lhs
    if bounds.nonnegative(rhs - lhs):
        return rhs
    return of_atom(Larger(lhs, rhs))
