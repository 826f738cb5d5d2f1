"""What symbolic elements are for actual indices, sizes and tensors: the oracle of mask tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from fuseline.ir.core import Value
from fuseline.passes.masks.expressions import Datum, Expression, Number, Pick
from fuseline.passes.masks.integers import (
    Atom,
    Element,
    Index,
    Larger,
    Linear,
    Product,
    Quotient,
    Size,
)
from fuseline.passes.masks.predicates import (
    AllOf,
    AnyOf,
    AtLeastZero,
    IsZero,
    Known,
    Not,
    Truth,
)


@dataclass(frozen=True)
class Actual:
    """Values for all that an expression may read."""

    indices: Mapping[str, int]
    sizes: Mapping[str, int]
    tensors: Mapping[Value, Tensor]

    def integer(self, expr: Linear) -> int:
        """The value of an integer expression."""
        return expr.const + sum(c * self._atom(a) for a, c in expr.terms)

    def _atom(self, atom: Atom) -> int:
        match atom:
            case Index(name):
                return self.indices[name]
            case Size(name):
                return self.sizes[name]
            case Product(names):
                result = 1
                for name in names:
                    result *= self.sizes[name]
                return result
            case Element(value, at):
                return int(self._element(value, at))
            case Quotient(of, by):
                return self.integer(of) // by
            case Larger(lhs, rhs):
                return max(self.integer(lhs), self.integer(rhs))
            case _:
                assert_never(atom)

    def _element(self, value: Value, at: tuple[Linear, ...]) -> float:
        return self.tensors[value][tuple(self.integer(i) for i in at)].item()

    def value(self, expr: Expression) -> float:
        """The value of any expression; conditions as bools."""
        match expr:
            case Linear():
                return self.integer(expr)
            case Known(value):
                return value
            case AtLeastZero(of):
                return self.integer(of) >= 0
            case IsZero(of):
                return self.integer(of) == 0
            case Truth(value, at):
                return bool(self._element(value, at))
            case Not(of):
                return not self.value(of)
            case AllOf(parts):
                return all(self.value(p) for p in parts)
            case AnyOf(parts):
                return any(self.value(p) for p in parts)
            case Number(value):
                return value
            case Datum(value, at):
                return self._element(value, at)
            case Pick(condition, lhs, rhs):
                return self.value(lhs if self.value(condition) else rhs)
            case _:
                assert_never(expr)
