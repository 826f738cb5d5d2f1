"""Sizes as torch writes them, as the IR's dims."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import sympy
import torch

from fuseline import _torch
from fuseline.ir.types import Dim, dim, floor_div, symbol


class UnknownSize(ValueError):
    """A size by a function that dims do not have."""


def import_dim(value: int | torch.SymInt | sympy.Expr) -> Dim:
    """The dim of a size: an int, a SymInt, or an expression of torch's.

    Raises:
        UnknownSize: the expression has a function that dims do not have.

    """
    if isinstance(value, torch.SymInt):
        value = _torch.expression(value)
    return value if isinstance(value, int) else _convert(value)


def _mod(lhs: Dim, rhs: Dim) -> Dim:
    return dim(sympy.Mod(sympy.sympify(lhs), sympy.sympify(rhs)))


def _power(base: Dim, power: Dim) -> Dim:
    return dim(sympy.sympify(base) ** power)


_CALLS: dict[str, Callable[..., Any]] = {
    "Add": lambda *parts: dim(functools.reduce(lambda a, b: a + b, parts)),
    "Mul": lambda *parts: dim(functools.reduce(lambda a, b: a * b, parts)),
    "Pow": _power,
    "FloorDiv": floor_div,
    "CleanDiv": floor_div,
    "Mod": _mod,
    "PythonMod": _mod,
    "Max": lambda *parts: dim(sympy.Max(*parts)),
    "Min": lambda *parts: dim(sympy.Min(*parts)),
}


@lru_cache(maxsize=65536)
def _convert(expr: sympy.Expr) -> Dim:
    if expr.is_Integer:
        return int(expr)
    if isinstance(expr, sympy.Symbol):
        return symbol(str(expr))
    call = _CALLS.get(type(expr).__name__)
    if call is None:
        raise UnknownSize(f"the size {expr}")
    return cast("Dim", call(*(_convert(cast("sympy.Expr", part)) for part in expr.args)))
