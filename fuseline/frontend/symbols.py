"""Integers that depend on shapes, as nodes of a graph: each expression is computed once.

``meta["val"]`` of such a node is its expression.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import sympy
import torch
from torch import fx

from fuseline.frontend.record import NotSimple

_operator: Any = operator
_torch: Any = torch

_CALLS: dict[str, Callable[..., Any]] = {
    "FloorDiv": _operator.floordiv,
    "CleanDiv": _operator.floordiv,
    "PythonMod": _operator.mod,
    "Mod": _operator.mod,
    "Max": _torch.sym_max,
    "Min": _torch.sym_min,
}


class SymbolNodes:
    """Gives expressions over shape symbols as nodes, made where they are first needed."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._nodes: dict[object, fx.Node] = {}

    def define(self, symbol: object, node: fx.Node) -> None:
        """Say which node holds a symbol's value; the first one counts."""
        self._nodes.setdefault(symbol, node)

    def knows(self, expr: object) -> bool:
        """Whether every symbol of an expression can be read somewhere."""
        return all(s in self._nodes for s in cast("Any", expr).free_symbols)

    def source(self, tensor: fx.Node, dim: int, symbol: object) -> None:
        """Say that a symbol is a size of a tensor, to be read where it is not known already."""
        if symbol not in self._nodes:
            node = self._graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
            node.meta["val"] = symbol
            self._nodes[symbol] = node

    def node(self, expr: int | sympy.Expr) -> fx.Node | int:
        """The node of an expression; an integer is itself.

        Raises:
            NotSimple: the expression reads a symbol that no input gives, or an unknown function.

        """
        if isinstance(expr, int) or expr.is_Integer:
            return int(expr)
        known = self._nodes.get(expr)
        if known is None:
            known = self._nodes[expr] = self._build(expr)
            known.meta["val"] = expr
        return known

    def _build(self, expr: sympy.Expr) -> fx.Node:
        if isinstance(expr, sympy.Symbol):
            raise NotSimple(f"no input gives the size {expr}")
        if isinstance(expr, sympy.Pow):
            base, power = expr.args
            if not (isinstance(power, sympy.Integer) and int(power) > 0):
                raise NotSimple(f"the size {expr}")
            return self._fold(operator.mul, [base] * int(power))
        if isinstance(expr, sympy.Add):
            return self._fold(operator.add, expr.args)
        if isinstance(expr, sympy.Mul):
            return self._fold(operator.mul, expr.args)
        call = _CALLS.get(type(expr).__name__)
        if call is None:
            raise NotSimple(f"the size {expr}")
        return self._fold(call, expr.args)

    def _fold(self, call: Callable[..., Any], parts: Any) -> fx.Node:
        total: Any = self.node(parts[0])
        for part in parts[1:]:
            total = self._graph.call_function(call, (total, self.node(part)))
            total.meta["val"] = None  # a partial result, which nothing but the next call reads
        return total
