"""The sizes that a choice is made for: ranges of a count, and numbers that stand for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

import sympy

from fuseline.codegen.forms import When
from fuseline.ir.core import Op
from fuseline.ir.types import Dim, Range, bounds, dim, format_dim, free_symbols, product

CUTS = (1, 16, 128, 1024)
"""Last counts of the ranges that any op of unknown size is looked at in: one token, a few, as many
as graphs are recorded for at most, a prompt, and more."""

MANY = 8192
"""A count that stands for all that are larger than the cuts."""

TYPICAL = 1024
"""A size that nothing else tells: the length of a cache, say."""


@dataclass(frozen=True)
class Span:
    """Counts from ``first`` to ``last``, both included; all from there on where that is None."""

    first: int
    last: int | None

    def __contains__(self, count: int) -> bool:
        return self.first <= count and (self.last is None or count <= self.last)

    def __str__(self) -> str:
        if self.last is None:
            return f"{self.first} and up"
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"

    @property
    def ends(self) -> tuple[int, ...]:
        """The least and the greatest count that stand for the range."""
        least = max(1, self.first)
        most = max(MANY, 8 * least) if self.last is None else self.last
        return tuple(dict.fromkeys((min(least, most), most)))

    @property
    def middle(self) -> int:
        """The count in the middle, by factors."""
        ends = self.ends
        return round((ends[0] * ends[-1]) ** 0.5)


def counted(op: Op, whens: Iterable[When]) -> Dim | None:
    """What the ranges of an op's launches count; rows of the op, where they have none; None where
    they count different things.
    """
    sizes = list(dict.fromkeys(when[0] for when in whens if when is not None))
    if len(sizes) > 1:
        return None
    if sizes:
        return sizes[0]
    value = next(iter(op.results), None) or next(iter(op.operands), None)
    if value is None:
        return 1
    rows: Any = product(value.shape[:-1])
    return rows if isinstance(rows, int) else dim(rows.as_coeff_Mul()[1])


def spans(
    count: Dim, whens: Iterable[When], symbols: Mapping[str, Range], cuts: Iterable[int] = CUTS
) -> list[Span]:
    """The ranges of a count: each launch runs for all of one, or for none of it."""
    low, high = bounds(count, symbols)
    if isinstance(count, int):
        return [Span(count, count)]
    ends = {last for when in whens if when for last in (when[1] - 1, when[2]) if last is not None}
    expr: Any = count
    factor = int(expr.as_coeff_Mul()[0])  # elements are counted, say, and cuts are of rows
    ends |= {factor * cut for cut in cuts}
    inner = sorted(e for e in ends if low <= e and (high is None or e < high))
    firsts = [low, *(e + 1 for e in inner)]
    return [Span(a, b) for a, b in zip(firsts, [*inner, high], strict=True)]


def binding(count: Dim, wanted: int, symbols: Mapping[str, Range]) -> dict[str, int]:
    """Values of all symbols with which a count comes close to a number, and does not exceed it
    unless its least value does. Counts do not fall as symbols grow.
    """
    inside = free_symbols(count)
    limits = dict(symbols) | {name: Range() for name in inside if name not in symbols}
    values = {n: max(1, r.lo) if n in inside else _clipped(TYPICAL, r) for n, r in limits.items()}
    growing = [name for name in reversed(limits) if name in inside]  # lengths stand behind batches
    for name in sorted(growing, key=lambda n: limits[n].hi is not None):
        most = limits[name].hi
        values[name] = _largest(count, wanted, values, name, wanted if most is None else most)
    return values


def _clipped(value: int, limits: Range) -> int:
    value = max(value, limits.lo)
    return value if limits.hi is None else min(value, limits.hi)


def _largest(count: Dim, wanted: int, values: dict[str, int], name: str, most: int) -> int:
    """The largest value of a symbol, up to ``most``, that keeps a count at ``wanted`` or below."""
    low, high = values[name], max(values[name], most)
    while low < high:
        tried = (low + high + 1) // 2
        if value_of(count, values | {name: tried}) <= wanted:
            low = tried
        else:
            high = tried - 1
    return low


def value_of(value: Dim, values: Mapping[str, int]) -> int:
    """The value of a dim; as `substitute`, and many times faster."""
    if isinstance(value, int):
        return value
    return int(eval(_code(value), {"__builtins__": {}, "Max": max, "Min": min}, {**values}))


@lru_cache(maxsize=65536)
def _code(value: sympy.Expr) -> CodeType:
    return compile(format_dim(value), "<dim>", "eval")


__all__ = ["CUTS", "Span", "binding", "counted", "spans", "value_of"]
