"""Imports element-wise ATen ops."""

from __future__ import annotations

from typing import Any

import torch

from fuseline.frontend.builder import Builder, Scalar, dtype_of, imports
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.types import DType, promote

_UNARY: dict[str, type[p.Unary]] = {
    "neg.default": p.Neg,
    "abs.default": p.Abs,
    "bitwise_not.default": p.BitwiseNot,
    "logical_not.default": p.LogicalNot,
    "floor.default": p.Floor,
    "ceil.default": p.Ceil,
    "sign.default": p.Sign,
    "sgn.default": p.Sign,
    "relu.default": p.Relu,
    "exp.default": p.Exp,
    "log.default": p.Log,
    "log1p.default": p.Log1p,
    "sqrt.default": p.Sqrt,
    "rsqrt.default": p.Rsqrt,
    "reciprocal.default": p.Reciprocal,
    "sin.default": p.Sin,
    "cos.default": p.Cos,
    "tanh.default": p.Tanh,
    "erf.default": p.Erf,
    "sigmoid.default": p.Sigmoid,
    "silu.default": p.Silu,
}

_BINARY: dict[str, type[p.Binary]] = {
    "mul": p.Mul,
    "div": p.Div,
    "floor_divide": p.FloorDivide,
    "remainder": p.Remainder,
    "maximum": p.Maximum,
    "minimum": p.Minimum,
    "bitwise_and": p.BitwiseAnd,
    "bitwise_or": p.BitwiseOr,
    "bitwise_xor": p.BitwiseXor,
    "__and__": p.BitwiseAnd,
    "__or__": p.BitwiseOr,
    "__xor__": p.BitwiseXor,
    "logical_and": p.LogicalAnd,
    "logical_or": p.LogicalOr,
    "eq": p.Eq,
    "ne": p.Ne,
    "lt": p.Lt,
    "le": p.Le,
    "gt": p.Gt,
    "ge": p.Ge,
}


def _import_unary(kind: type[p.Unary]) -> Any:
    def build(b: Builder, x: Value) -> Value:
        return b.add(kind(x)).y

    return build


def _import_binary(kind: type[p.Binary]) -> Any:
    def build(b: Builder, lhs: Value | Scalar, rhs: Value | Scalar) -> Value:
        return b.add(kind(b.operand(lhs, rhs), b.operand(rhs, lhs))).y

    return build


for _name, _unary in _UNARY.items():
    imports(f"aten.{_name}")(_import_unary(_unary))
for _name, _binary in _BINARY.items():
    _overloads = ("default", "Tensor", "Scalar", "Tensor_Scalar", "Scalar_Tensor")
    imports(*(f"aten.{_name}.{o}" for o in _overloads))(_import_binary(_binary))


def _sum(b: Builder, kind: type[p.Binary], lhs: Any, rhs: Any, alpha: Any) -> Any:
    if alpha != 1:  # torch multiplies and adds with one rounding
        return NotImplemented
    return b.add(kind(b.operand(lhs, rhs), b.operand(rhs, lhs))).y


@imports("aten.add.Tensor", "aten.add.Scalar")
def _add(b: Builder, lhs: Any, rhs: Any, alpha: Any = 1) -> Any:
    return _sum(b, p.Add, lhs, rhs, alpha)


@imports("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(b: Builder, lhs: Any, rhs: Any, alpha: Any = 1) -> Any:
    return _sum(b, p.Sub, lhs, rhs, alpha)


@imports("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub(b: Builder, lhs: Any, rhs: Any, alpha: Any = 1) -> Any:
    return _sum(b, p.Sub, rhs, lhs, alpha)


@imports("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _div_mode(b: Builder, lhs: Any, rhs: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return b.add(p.Div(b.operand(lhs, rhs), b.operand(rhs, lhs))).y
    if rounding_mode == "floor":
        return b.add(p.FloorDivide(b.operand(lhs, rhs), b.operand(rhs, lhs))).y
    return NotImplemented


@imports("aten.square.default")
def _square(b: Builder, x: Value) -> Value:
    return b.add(p.Mul(x, x)).y


@imports("aten.pow.Tensor_Scalar")
def _pow_scalar(b: Builder, x: Value, exponent: Any) -> Any:
    """Small powers by the arithmetic that torch does for them, so that ``x**2`` is ``x * x``."""
    if x.dtype.is_float:
        match exponent:
            case 1:
                return x
            case 2:
                return b.add(p.Mul(x, x)).y
            case 3:
                return b.add(p.Mul(b.add(p.Mul(x, x)).y, x)).y
            case 0.5:
                return b.add(p.Sqrt(x)).y
            case -0.5:
                return b.add(p.Rsqrt(x)).y
            case -1:
                return b.add(p.Reciprocal(x)).y
            case _:
                pass
    elif exponent == 2 and x.dtype is not DType.BOOL:
        return b.add(p.Mul(x, x)).y
    return b.add(p.Pow(x, b.scalar(exponent, x))).y


@imports("aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def _pow(b: Builder, lhs: Any, rhs: Value) -> Value:
    return b.add(p.Pow(b.operand(lhs, rhs), rhs)).y


@imports("aten.gelu.default")
def _gelu(b: Builder, x: Value, approximate: Any = "none") -> Value:
    return b.add(p.Gelu(x, approximate=approximate)).y


@imports("aten.softplus.default")
def _softplus(b: Builder, x: Value, beta: float = 1, threshold: float = 20) -> Any:
    return b.add(p.Softplus(x)).y if (beta, threshold) == (1, 20) else NotImplemented


@imports("aten.clamp.default", "aten.clamp.Tensor")
def _clamp(b: Builder, x: Value, low: Any = None, high: Any = None) -> Value:
    if low is not None:
        x = b.add(p.Maximum(x, b.operand(low, x))).y
    if high is not None:
        x = b.add(p.Minimum(x, b.operand(high, x))).y
    return x


@imports("aten.hardtanh.default")
def _hardtanh(b: Builder, x: Value, low: Any = -1, high: Any = 1) -> Value:
    """Traced without the bounds that are the schema's own."""
    return _clamp(b, x, low, high)


@imports("aten.clamp_min.default", "aten.clamp_min.Tensor")
def _clamp_min(b: Builder, x: Value, low: Any) -> Value:
    return _clamp(b, x, low)


@imports("aten.clamp_max.default", "aten.clamp_max.Tensor")
def _clamp_max(b: Builder, x: Value, high: Any) -> Value:
    return _clamp(b, x, None, high)


@imports("aten.where.self")
def _where(b: Builder, condition: Value, lhs: Value, rhs: Value) -> Value:
    return b.add(p.Where(b.cast(condition, DType.BOOL), lhs, rhs)).y


@imports("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(b: Builder, x: Value, mask: Value, value: Any) -> Value:
    filling = b.cast(value, x.dtype) if isinstance(value, Value) else b.full(value, x.dtype)
    return b.add(p.Where(mask, filling, x)).y


@imports("aten._to_copy.default")
def _to_copy(b: Builder, x: Value, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return NotImplemented if b.moves else b.cast(x, dtype_of(dtype, x.dtype))


@imports("aten.copy.default")
def _copy(b: Builder, x: Value, src: Value, non_blocking: bool = False) -> Value:
    return b.expand(b.cast(src, x.dtype), x.shape)


@imports("aten.addcmul.default")
def _addcmul(b: Builder, x: Value, lhs: Value, rhs: Value, value: Any = 1) -> Any:
    """Only in float32 and float64: in narrow types torch rounds the product and sum once."""
    narrow = promote([x.tensor, lhs.tensor, rhs.tensor]) not in (DType.F32, DType.F64)
    if value != 1 or narrow:
        return NotImplemented
    return b.add(p.Add(x, b.add(p.Mul(lhs, rhs)).y)).y
