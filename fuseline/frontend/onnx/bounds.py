"""Bounds that must lie within an extent, where one of them is a size that a run gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import sympy

from fuseline.frontend.onnx.node import Node
from fuseline.ir.types import Dim, Range, dim, free_symbols, symbol

_sympy = cast("Any", sympy)


def holds(n: Node, bound: Dim, extent: Dim) -> bool:
    """Whether ``bound <= extent`` for any sizes, if need be by a narrower range of a symbol.

    A table of 2048 positions of which a model reads as many as there are tokens takes at most 2048
    tokens: a call with more is then refused, and no kernel reads what is not there.
    """
    if isinstance(bound, int) and isinstance(extent, int):
        return bound <= extent
    room = dim(extent - bound)
    if n.b.is_nonnegative(room):
        return True
    names = free_symbols(room)
    if len(names) != 1:
        return False
    (name,) = names
    known = n.b.func.symbols.get(name, Range())
    size: Any = symbol(name)
    slope, rest = cast("Any", room).diff(size), dim(cast("Any", room).subs({size: 0}))
    if not isinstance(rest, int) or slope not in (1, -1):
        return False
    if slope == 1:
        n.b.func.symbols[name] = replace(known, lo=max(known.lo, -rest))
        return True
    if rest < known.lo:
        return False
    n.b.func.symbols[name] = replace(known, hi=rest if known.hi is None else min(known.hi, rest))
    return True


def at_most(n: Node, bound: Dim, extent: Dim) -> Dim:
    """The smaller of both."""
    if holds(n, bound, extent):
        return bound
    if holds(n, extent, bound):
        return extent
    return dim(_sympy.Min(bound, extent))


def place(n: Node, bound: Dim, extent: Dim) -> Dim:
    """A bound of a slice: from the end where it is negative, and within the extent."""
    if isinstance(bound, int) and bound < 0:
        from_end = dim(extent + bound)
        if isinstance(from_end, int):
            return max(from_end, 0)
        return from_end if holds(n, 0, from_end) else dim(_sympy.Max(from_end, 0))
    if not isinstance(bound, int) and not n.b.is_nonnegative(bound):
        if n.b.is_nonnegative(dim(-bound - 1)):
            return dim(extent + bound)
        if not holds(n, 0, bound):
            bound = dim(_sympy.Max(bound, 0))
    return at_most(n, bound, extent)


__all__ = ["at_most", "holds", "place"]
