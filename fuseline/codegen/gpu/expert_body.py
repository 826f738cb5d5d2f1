"""The activation of an expert in Triton: statements over the products of one block.

Values are computed in float32 and rounded to their own type by every op, as eager does.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch

from fuseline.codegen.gpu.scalar import ScalarError, Term, expression, literal, round_to
from fuseline.codegen.lower import FLOATS, Refusal
from fuseline.codegen.mixtures import Element
from fuseline.ir.core import Func
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.fused import Copy
from fuseline.ir.region import Node, RegionError, analyse
from fuseline.ir.types import DType, TensorType


def written(body: Func, names: Sequence[str]) -> Element | Refusal:
    """The one result of ``body`` where its arguments have the values ``names``."""
    try:
        return _written(body, names)
    except (RegionError, ScalarError) as error:
        return Refusal(str(error))


def _written(body: Func, names: Sequence[str]) -> Element:
    region = analyse(body)
    if len(region.results) != 1 or region.reduced:
        raise RegionError("the body is not one element-wise result")
    given = dict(zip(body.args, names, strict=True))
    terms: dict[Node, Term] = {}
    statements: list[str] = []
    for i, node in enumerate(region.nodes):
        kind = node.value.tensor
        if node.op is None:
            terms[node] = Term(given[node.value], kind)
        elif isinstance(node.op, Full):
            terms[node] = _constant(node.op, kind)
        elif isinstance(node.op, Copy):
            terms[node] = terms[node.inputs[0]]
        else:
            if kind.dtype not in (*FLOATS, DType.BOOL):
                raise ScalarError(f"{node.op.name} of {kind.dtype} in an activation")
            text = expression(node.op, [terms[n] for n in node.inputs], kind.dtype)
            statements.append(f"v{i} = {round_to(text, kind.dtype)}")
            terms[node] = Term(f"v{i}", kind)
    return Element(tuple(statements), terms[region.results[0]].text)


def _constant(op: Full, kind: TensorType) -> Term:
    if isinstance(op.value, sympy.Expr):
        raise ScalarError(f"a constant of {op.value}, known only when the program runs")
    value = torch.full((), op.value, dtype=kind.dtype.torch).item()
    return Term(literal(value, kind.dtype), kind, value)


__all__ = ["written"]
