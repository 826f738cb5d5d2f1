"""Integers as linear expressions over indices, sizes and tensor elements.

This is the arithmetic of mask proofs: an element of an integer tensor is written as a constant plus
multiples of *atoms*, so that equal expressions are equal objects. What is not linear becomes an
atom of its own; nothing is ever rounded or guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

import sympy

from fuseline.ir.core import Value
from fuseline.ir.types import Dim, dim, floor_div, product, symbol
from fuseline.passes.wording import name_of

Atom: TypeAlias = "Index | Size | Product | Element | Quotient | Larger"


@dataclass(frozen=True)
class Linear:
    """``const`` plus the sum of ``coefficient * atom``."""

    const: int
    terms: frozenset[tuple[Atom, int]] = frozenset()

    def __add__(self, other: Linear) -> Linear:
        return _sum(self, other, 1)

    def __sub__(self, other: Linear) -> Linear:
        return _sum(self, other, -1)

    def __neg__(self) -> Linear:
        return self.times(-1)

    def __hash__(self) -> int:
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash((self.const, self.terms))
            object.__setattr__(self, "_hash", known)
        return known

    def times(self, factor: int) -> Linear:
        """The expression times an integer."""
        if factor == 0:
            return ZERO
        return Linear(self.const * factor, frozenset((a, c * factor) for a, c in self.terms))

    def plus(self, number: int) -> Linear:
        """The expression plus an integer."""
        return Linear(self.const + number, self.terms) if number else self

    @property
    def is_const(self) -> bool:
        """Whether no atom is left."""
        return not self.terms

    def coefficient(self, atom: Atom) -> int:
        """The factor of an atom; 0 where it does not occur at the top."""
        return next((c for a, c in self.terms if a == atom), 0)

    def indices(self) -> set[str]:
        """The names of the indices that occur, nested ones too."""
        return {name for atom, _ in self.terms for name in atom_indices(atom)}

    def __str__(self) -> str:
        parts = sorted((_show(a, abs(c)), c) for a, c in self.terms)
        parts.sort(key=lambda part: part[1] < 0)
        text = "".join((" - " if c < 0 else " + ") + shown for shown, c in parts)
        text = text[3:] if text.startswith(" + ") else text.replace(" - ", "-", 1)
        if not text:
            return str(self.const)
        return text + (f" {'-' if self.const < 0 else '+'} {abs(self.const)}" if self.const else "")


@dataclass(frozen=True)
class Index:
    """A running index, ``0 <= index < extent``."""

    name: str
    extent: Linear


@dataclass(frozen=True)
class Size:
    """A dim symbol of the func."""

    name: str


@dataclass(frozen=True)
class Product:
    """A product of dim symbols, by name, in order."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Element:
    """An element of an integer tensor of which nothing more is known."""

    value: Value
    at: tuple[Linear, ...]


@dataclass(frozen=True)
class Quotient:
    """``of // by``, rounded down; ``by`` is positive."""

    of: Linear
    by: int


@dataclass(frozen=True)
class Larger:
    """The larger of two expressions."""

    lhs: Linear
    rhs: Linear


ZERO = Linear(0)
ONE = Linear(1)


def atom_indices(atom: Atom) -> set[str]:
    """The names of the indices in an atom."""
    match atom:
        case Index(name):
            return {name}
        case Element(_, at):
            return {name for expr in at for name in expr.indices()}
        case Quotient(of):
            return of.indices()
        case Larger(lhs, rhs):
            return lhs.indices() | rhs.indices()
        case _:
            return set()


def of_atom(atom: Atom) -> Linear:
    """An atom as an expression."""
    return Linear(0, frozenset({(atom, 1)}))


def new_index(name: str, extent: Dim) -> Linear:
    """A running index below an extent; the constant 0 where the extent is 1."""
    return ZERO if extent == 1 else of_atom(Index(name, of_dim(extent)))


def _sum(lhs: Linear, rhs: Linear, sign: int) -> Linear:
    if not rhs.terms:
        return lhs.plus(sign * rhs.const)
    terms = dict(lhs.terms)
    for atom, coefficient in rhs.terms:
        total = terms.get(atom, 0) + sign * coefficient
        if total:
            terms[atom] = total
        else:
            del terms[atom]
    return Linear(lhs.const + sign * rhs.const, frozenset(terms.items()))


def total(parts: Iterable[Linear]) -> Linear:
    """The sum of expressions."""
    result = ZERO
    for part in parts:
        result = result + part
    return result


# -- dims -----------------------------------------------------------------------------------


@lru_cache(maxsize=16384)
def _of_expr(expr: sympy.Expr) -> Linear | None:
    parts = [_of_term(term) for term in cast("Any", sympy.Add).make_args(expr)]
    return None if any(p is None for p in parts) else total(cast("list[Linear]", parts))


def _of_term(term: Any) -> Linear | None:
    factor, rest = term.as_coeff_Mul()
    if not factor.is_Integer:
        return None
    inner = _of_factor(rest)
    return None if inner is None else inner.times(int(factor))


def _of_factor(rest: Any) -> Linear | None:
    if rest == 1:
        return ONE
    if isinstance(rest, sympy.Symbol):
        return of_atom(Size(str(rest)))
    if isinstance(rest, (sympy.Max, sympy.Min)):
        return _of_extreme([_of_expr(a) for a in rest.args], isinstance(rest, sympy.Max))
    if isinstance(rest, sympy.floor):
        above, below = rest.args[0].as_numer_denom()
        of = _of_expr(cast("Any", sympy).expand(above))
        return of_atom(Quotient(of, int(below))) if of is not None and below.is_Integer else None
    names: list[str] = []
    for factor in sympy.Mul.make_args(rest):
        base, power = factor.as_base_exp()
        if not (isinstance(base, sympy.Symbol) and power.is_Integer and power > 0):
            return None
        names += [str(base)] * int(power)
    return of_atom(Product(tuple(sorted(names))))


def _of_extreme(parts: Sequence[Linear | None], largest: bool) -> Linear | None:
    sign = 1 if largest else -1
    result: Linear | None = None
    for part in parts:
        if part is None:
            return None
        signed = part.times(sign)
        result = signed if result is None else of_atom(Larger(result, signed))
    return None if result is None else result.times(sign)


class Unknown(ValueError):
    """A dim or an expression that this arithmetic cannot hold."""


def of_dim(value: Dim) -> Linear:
    """A dim as an expression.

    Raises:
        Unknown: the dim is not made of sums, products, quotients, ``Max`` and ``Min``.

    """
    if isinstance(value, int):
        return Linear(value)
    found = _of_expr(value)
    if found is None:
        raise Unknown(str(value))
    return found


def same_dim(lhs: Dim, rhs: Dim) -> bool:
    """Whether two dims are the same expression."""
    if isinstance(lhs, int) or isinstance(rhs, int):
        return isinstance(lhs, int) and isinstance(rhs, int) and lhs == rhs
    if lhs is rhs:
        return True
    return bool(cast("Any", lhs) == rhs)


def to_dim(expr: Linear) -> Dim:
    """An expression as a dim.

    Raises:
        Unknown: it reads an index or a tensor.

    """
    parts: list[Any] = [expr.const]
    for atom, coefficient in sorted(expr.terms, key=lambda term: str(term[0])):
        if isinstance(atom, Larger) and coefficient < 0:
            least = cast("Any", sympy.Min)(to_dim(-atom.lhs), to_dim(-atom.rhs))
            parts.append(-coefficient * least)
        else:
            parts.append(coefficient * cast("Any", _atom_dim(atom)))
    return dim(sum(parts))


def _atom_dim(atom: Atom) -> Dim:
    match atom:
        case Size(name):
            return symbol(name)
        case Product(names):
            return product(symbol(n) for n in names)
        case Quotient(of, by):
            return floor_div(to_dim(of), by)
        case Larger(lhs, rhs):
            return dim(cast("Any", sympy.Max)(to_dim(lhs), to_dim(rhs)))
        case _:
            raise Unknown(str(atom))


# -- printing -------------------------------------------------------------------------------


def _show(atom: Atom, factor: int) -> str:
    text = show_atom(atom)
    return text if factor == 1 else f"{factor}*{text}"


def show_atom(atom: Atom) -> str:
    """An atom as a reader of a report sees it."""
    match atom:
        case Index(name) | Size(name):
            return name
        case Product(names):
            return "*".join(names)
        case Element(value, at):
            return show_element(value, at)
        case Quotient(of, by):
            return f"({of})//{by}"
        case Larger(lhs, rhs):
            return f"max({lhs}, {rhs})"


def show_element(value: Value, at: Sequence[Linear]) -> str:
    """``%x[b, k]``."""
    name = f"%{name_of(value)}"
    return f"{name}[{', '.join(map(str, at))}]" if at else name
