"""The activation of an expert in Triton: statements over the products of one block.

Values are computed in float32 and rounded to their own type by every op, as eager does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch

from fuseline.codegen.gpu.kernel import TL_TYPES
from fuseline.codegen.lower import FLOATS, Refusal
from fuseline.codegen.mixtures import Element
from fuseline.codegen.scalars import COMPARISONS, SIGNS
from fuseline.ir.core import Func, Op
from fuseline.ir.ops import pointwise as ops
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.fused import Copy
from fuseline.ir.region import Node, RegionError, analyse
from fuseline.ir.types import DType, TensorType, promote


class _Unwritable(ValueError):
    """An op, or a type, that has no form here; the message says why."""


@dataclass(frozen=True)
class _Term:
    """An expression, the type of the tensor that it is an element of, its constant if known."""

    text: str
    type: TensorType
    constant: float | None = None

    def as_type(self, dtype: DType) -> str:
        """The element cast to a dtype."""
        if self.constant is not None:
            return _number(_rounded(self.constant, dtype))
        return self.text if dtype in (DType.F32, self.type.dtype) else rounded(self.text, dtype)


def rounded(text: str, dtype: DType) -> str:
    """A rounding point: the value as the dtype can hold it."""
    if dtype in (DType.F32, DType.BOOL):
        return text
    return f"({text}).to({TL_TYPES[dtype.value]}).to(tl.float32)"


def _rounded(value: float, dtype: DType) -> float:
    return float(torch.tensor(value, dtype=dtype.torch).item())


def _number(value: float) -> str:
    if not math.isfinite(value):
        return f'float("{value}")'
    return repr(value) if value >= 0 else f"({value!r})"


def written(body: Func, names: Sequence[str]) -> Element | Refusal:
    """The one result of ``body`` where its arguments have the values ``names``."""
    try:
        return _written(body, names)
    except (RegionError, _Unwritable) as error:
        return Refusal(str(error))


def _written(body: Func, names: Sequence[str]) -> Element:
    region = analyse(body)
    if len(region.results) != 1 or region.reduced:
        raise RegionError("the body is not one element-wise result")
    given = dict(zip(body.args, names, strict=True))
    terms: dict[Node, _Term] = {}
    statements: list[str] = []
    for i, node in enumerate(region.nodes):
        kind = node.value.tensor
        if node.op is None:
            terms[node] = _Term(given[node.value], kind)
        elif isinstance(node.op, Full):
            terms[node] = _constant(node.op, kind)
        elif isinstance(node.op, Copy):
            terms[node] = terms[node.inputs[0]]
        else:
            if kind.dtype not in (*FLOATS, DType.BOOL):
                raise _Unwritable(f"{node.op.name} of {kind.dtype} in an activation")
            text = _expression(node.op, [terms[n] for n in node.inputs], kind.dtype)
            statements.append(f"v{i} = {rounded(text, kind.dtype)}")
            terms[node] = _Term(f"v{i}", kind)
    return Element(tuple(statements), terms[region.results[0]].text)


def _constant(op: Full, kind: TensorType) -> _Term:
    if isinstance(op.value, sympy.Expr):
        raise _Unwritable(f"a constant of {op.value}, known only when the program runs")
    value = float(op.value)
    value = _rounded(value, kind.dtype) if kind.dtype in FLOATS else value
    return _Term(_number(value), kind, value)


_FUNCTIONS: dict[type[Op], str] = {
    ops.Abs: "tl.abs",
    ops.Exp: "tl.exp",
    ops.Log: "tl.log",
    ops.Sqrt: "tl.sqrt_rn",
    ops.Rsqrt: "tl.rsqrt",
    ops.Sin: "tl.sin",
    ops.Cos: "tl.cos",
    ops.Erf: "tl.erf",
    ops.Floor: "tl.floor",
    ops.Ceil: "tl.ceil",
    ops.Tanh: "tanh",
    ops.Sigmoid: "sigmoid",
    ops.Silu: "silu",
    ops.Softplus: "softplus",
    ops.Log1p: "log1p",
    ops.Relu: "relu",
}
_SIGNS: dict[type[Op], str] = {**SIGNS, ops.Div: "/"}
_OPMATH = (ops.Mul, ops.Div)
"""With a 0-d right operand, torch does not round it to a 16-bit type before these."""

_POWERS = {
    2.0: "{x} * {x}",
    3.0: "{x} * {x} * {x}",
    0.5: "tl.sqrt_rn({x})",
    1.0: "{x}",
    -0.5: "tl.rsqrt({x})",
    -1.0: "1.0 / {x}",
}


def _expression(op: Op, terms: Sequence[_Term], result: DType) -> str:
    """The value of one element of the op's result, before it is rounded to ``result``."""
    match op:
        case ops.Cast() if terms[0].type.dtype in FLOATS and result in FLOATS:
            return terms[0].as_type(DType.F32)
        case ops.Where():
            a, b = (t.as_type(result) for t in terms[1:])
            return f"tl.where({terms[0].text}, {a}, {b})"
        case ops.Compare():
            common = promote([t.type for t in terms])
            if common not in FLOATS:
                raise _Unwritable(f"{op.name} of {common} in an activation")
            a, b = (t.as_type(common) for t in terms)
            return f"{a} {COMPARISONS[type(op)]} {b}"
        case ops.Binary() if result in FLOATS:
            return _binary(op, terms, result)
        case _ if len(terms) == 1 and result in FLOATS:
            return _unary(op, terms[0].as_type(result))
        case _:
            raise _Unwritable(f"{op.name} in an activation")


def _unary(op: Op, x: str) -> str:
    match op:
        case ops.Neg():
            return f"-{x}"
        case ops.Reciprocal():
            return f"1.0 / {x}"
        case ops.Gelu():
            return f"gelu_{'tanh' if op.approximate == 'tanh' else 'erf'}({x})"
        case _ if type(op) in _FUNCTIONS:
            return f"{_FUNCTIONS[type(op)]}({x})"
        case _:
            raise _Unwritable(f"{op.name} in an activation")


def _binary(op: Op, terms: Sequence[_Term], result: DType) -> str:
    a, b = (t.as_type(result) for t in terms)
    if isinstance(op, _OPMATH) and not terms[1].type.rank:
        b = terms[1].as_type(DType.F32)
    match op:
        case ops.Maximum() | ops.Minimum():
            name = "maximum" if isinstance(op, ops.Maximum) else "minimum"
            return f"tl.{name}({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"
        case ops.Pow() if terms[1].constant in _POWERS:
            return _POWERS[terms[1].constant].format(x=a)
        case _ if type(op) in _SIGNS:
            return f"{a} {_SIGNS[type(op)]} {b}"
        case _:
            raise _Unwritable(f"{op.name} in an activation")


__all__ = ["rounded", "written"]
