"""One element of a small element-wise func, as C++ statements inside of another kernel's loop."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch

from fuseline.codegen.cpu.scalar import COMPUTE, ScalarError, Term, expression, literal, round_to
from fuseline.codegen.lower import Refusal
from fuseline.codegen.mixtures import Element
from fuseline.ir.core import Func
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.fused import Copy
from fuseline.ir.region import Node, RegionError, analyse


def element(body: Func, names: Sequence[str]) -> Element:
    """The one result of ``body`` at a point where its arguments have the values ``names``.

    Raises:
        RegionError: the body is not element-wise, or has not one result.
        ScalarError: one of its ops has no C++ form.
    """
    region = analyse(body)
    if len(region.results) != 1 or region.reduced:
        raise RegionError("the body is not one element-wise result")
    given = dict(zip(body.args, names, strict=True))
    terms: dict[Node, Term] = {}
    statements: list[str] = []
    for i, node in enumerate(region.nodes):
        if node.op is None:
            terms[node] = Term(given[node.value], node.value.tensor)
            continue
        terms[node] = _constant(node) or _copied(node, terms)
        if terms[node].text:
            continue
        dtype = node.value.dtype
        text = round_to(expression(node.op, [terms[n] for n in node.inputs], dtype), dtype)
        statements.append(f"const {COMPUTE[dtype]} v{i} = {text};")
        terms[node] = Term(f"v{i}", node.value.tensor)
    return Element(tuple(statements), terms[region.results[0]].text)


def written(body: Func, names: Sequence[str]) -> Element | Refusal:
    """As `element`; the reason where there is none."""
    try:
        return element(body, names)
    except (RegionError, ScalarError) as error:
        return Refusal(str(error))


def _copied(node: Node, terms: dict[Node, Term]) -> Term:
    """What a copy copies; a term without text for any other op."""
    return terms[node.inputs[0]] if isinstance(node.op, Copy) else Term("", node.value.tensor)


def _constant(node: Node) -> Term | None:
    if not isinstance(node.op, Full):
        return None
    if isinstance(node.op.value, sympy.Expr):
        raise RegionError(f"a constant of {node.op.value}, known only when the program runs")
    kind = node.value.tensor
    value = torch.full((), node.op.value, dtype=kind.dtype.torch).item()
    return Term(literal(value, kind.dtype), kind, value)


__all__ = ["Element", "element", "written"]
