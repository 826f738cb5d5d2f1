"""What tracing asks of sizes and cannot prove itself: proven here for every size of a range.

torch's export refuses a program as soon as it cannot show that what it has asked of sizes on the
way holds for all of them, such as ``s*min(88, 88*s) == 88*s``, which holds for each ``s`` above 0.
It can also be told to write such questions down. Where all are proven, the program asks nothing; a
program with any other is refused, as torch does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import sympy
import torch
from torch import fx

from fuseline import _torch
from fuseline.frontend.places import value_of


def prove(program: Any) -> bool:
    """Whether all that a program asks of the sizes of its inputs holds; then it asks no more.

    Args:
        program: of torch's export, by `_torch.export_graph` with ``asking``.

    """
    graph, ranges = program.graph_module.graph, program.range_constraints
    asked = [n for n in graph.nodes if n.target is torch.ops.aten._assert_scalar.default]
    conditions = [n.args[0] for n in asked]
    values = [value_of(c) if isinstance(c, fx.Node) else c for c in conditions]
    every = [*map(_torch.scalar_expression, values), *_torch.asked_of_sizes(program)]
    if not all(holds(condition, ranges) for condition in every):
        return False
    for node in asked:
        graph.erase_node(node)
    return True


def holds(condition: Any, ranges: Mapping[sympy.Symbol, Any]) -> bool:
    """Whether a condition holds for all sizes from their least ones on.

    False also where that is not known.
    """
    if isinstance(condition, bool | sympy.logic.boolalg.BooleanAtom):
        return bool(condition)
    if not isinstance(condition, sympy.Basic):
        return False
    above: dict[Any, Any] = {}
    for size in cast("set[sympy.Symbol]", condition.free_symbols):
        known = ranges.get(size)
        if known is None or not known.lower.is_Integer:
            return False
        above[size] = sympy.Symbol(f"{size}_above", integer=True, nonnegative=True) + known.lower
    shifted: Any = _torch.plain_limits(condition).xreplace(above)
    if isinstance(shifted, sympy.Eq):
        left, right = cast("tuple[Any, Any]", shifted.args)
        return bool((left - right).expand() == 0)
    return shifted is sympy.true


__all__ = ["holds", "prove"]
