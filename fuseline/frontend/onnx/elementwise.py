"""Element-wise operators."""

from __future__ import annotations

import math
from typing import Any

from fuseline.frontend.onnx.data import dtype_of
from fuseline.frontend.onnx.idioms import gelu, is_number, root_of, silu
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.types import DType, TensorType, broadcast

# -- one operand ----------------------------------------------------------------------------

_UNARY: dict[str, type[p.Unary]] = {
    "Neg": p.Neg,
    "Abs": p.Abs,
    "Not": p.LogicalNot,
    "BitwiseNot": p.BitwiseNot,
    "Floor": p.Floor,
    "Ceil": p.Ceil,
    "Sign": p.Sign,
    "Relu": p.Relu,
    "Exp": p.Exp,
    "Log": p.Log,
    "Sqrt": p.Sqrt,
    "Sin": p.Sin,
    "Cos": p.Cos,
    "Tanh": p.Tanh,
    "Erf": p.Erf,
    "Sigmoid": p.Sigmoid,
    "Softplus": p.Softplus,
}
_ATEN = {
    "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan",
    "Atanh": "atanh", "Cosh": "cosh", "Sinh": "sinh", "Tan": "tan", "Round": "round",
}  # fmt: skip


def _unary(kind: type[p.Unary]) -> Any:
    def build(n: Node) -> Value:
        return n.b.add(kind(n.x())).y

    return build


def _aten(name: str) -> Any:
    def build(n: Node) -> Value:
        return n.call(f"{name}.default", n.x(), kind=n.x().tensor)

    return build


for _name, _kind in _UNARY.items():
    onnx_op(_name)(_unary(_kind))
for _name, _target in _ATEN.items():
    onnx_op(_name)(_aten(_target))


@onnx_op("Identity")
def _identity(n: Node) -> Any:
    return n.x()


@onnx_op("Dropout", since=7)
def _dropout(n: Node) -> Any:
    """As in inference: the input itself, and a mask of ones."""
    if n.opset >= 12 and n.has(2) and bool(n.number(2)):
        ratio = n.number(1) if n.has(1) else 0.5
        if ratio:
            raise Unsupported("dropout in training mode")
    x = n.x()
    return x, n.b.full(True, DType.BOOL, x.shape) if n.wants(1) else None


@onnx_op("IsNaN")
def _is_nan(n: Node) -> Value:
    return n.b.add(p.Ne(n.x(), n.x())).y


@onnx_op("IsInf")
def _is_inf(n: Node) -> Value:
    x = n.x()
    up, down = n.attr("detect_positive", 1), n.attr("detect_negative", 1)
    found = [
        n.b.add(p.Eq(x, n.full(sign * math.inf, x))).y
        for sign, asked in ((1, up), (-1, down))
        if asked
    ]
    if not found:
        return n.b.full(False, DType.BOOL, x.shape)
    return found[0] if len(found) == 1 else n.b.add(p.LogicalOr(*found)).y


# -- activations ----------------------------------------------------------------------------


def mul(n: Node, x: Value, factor: float | Value) -> Value:
    """``x * factor``."""
    return n.b.add(p.Mul(x, factor if isinstance(factor, Value) else n.full(factor, x))).y


def add(n: Node, x: Value, term: float | Value) -> Value:
    """``x + term``."""
    return n.b.add(p.Add(x, term if isinstance(term, Value) else n.full(term, x))).y


def sub(n: Node, x: Value, term: float | Value) -> Value:
    """``x - term``."""
    return n.b.add(p.Sub(x, term if isinstance(term, Value) else n.full(term, x))).y


def _where(n: Node, condition: Value, lhs: Value, rhs: Value) -> Value:
    return n.b.add(p.Where(condition, lhs, rhs)).y


def clamp(n: Node, x: Value, low: float | None, high: float | None) -> Value:
    """``x`` between two numbers."""
    if low is not None:
        x = n.b.add(p.Maximum(x, n.full(low, x))).y
    return x if high is None else n.b.add(p.Minimum(x, n.full(high, x))).y


def _exp_minus_1(n: Node, x: Value) -> Value:
    return n.call("expm1.default", x, kind=x.tensor)


@onnx_op("Gelu", since=20)
def _gelu(n: Node) -> Value:
    return n.b.add(p.Gelu(n.x(), approximate=n.attr("approximate", "none"))).y


@onnx_op("Elu")
def _elu(n: Node) -> Value:
    x = n.x()
    below = mul(n, _exp_minus_1(n, clamp(n, x, None, 0.0)), n.attr("alpha", 1.0))
    return _where(n, n.b.add(p.Gt(x, n.full(0, x))).y, x, below)


@onnx_op("Selu")
def _selu(n: Node) -> Value:
    x = n.x()
    alpha, gamma = n.attr("alpha", 1.67326319217681884765625), n.attr("gamma", 1.0507010221481323)
    below = mul(n, _exp_minus_1(n, clamp(n, x, None, 0.0)), alpha)
    return mul(n, _where(n, n.b.add(p.Gt(x, n.full(0, x))).y, x, below), gamma)


@onnx_op("Celu")
def _celu(n: Node) -> Value:
    x, alpha = n.x(), n.attr("alpha", 1.0)
    below = mul(n, _exp_minus_1(n, mul(n, clamp(n, x, None, 0.0), 1 / alpha)), alpha)
    return add(n, clamp(n, x, 0.0, None), below)


@onnx_op("LeakyRelu")
def _leaky_relu(n: Node) -> Value:
    x = n.x()
    below = mul(n, x, n.attr("alpha", 0.01))
    return _where(n, n.b.add(p.Lt(x, n.full(0, x))).y, below, x)


@onnx_op("PRelu")
def _prelu(n: Node) -> Value:
    x, slope = n.x(0), n.x(1)
    below = n.b.add(p.Mul(x, slope)).y
    return _where(n, n.b.add(p.Lt(x, n.full(0, x))).y, below, x)


@onnx_op("ThresholdedRelu")
def _thresholded_relu(n: Node) -> Value:
    x = n.x()
    above = n.b.add(p.Gt(x, n.full(n.attr("alpha", 1.0), x))).y
    return _where(n, above, x, n.full(0, x))


@onnx_op("HardSigmoid")
def _hard_sigmoid(n: Node) -> Value:
    line = add(n, mul(n, n.x(), n.attr("alpha", 0.2)), n.attr("beta", 0.5))
    return clamp(n, line, 0.0, 1.0)


@onnx_op("HardSwish")
def _hard_swish(n: Node) -> Value:
    x = n.x()
    return mul(n, x, clamp(n, add(n, mul(n, x, 1 / 6), 0.5), 0.0, 1.0))


@onnx_op("Mish")
def _mish(n: Node) -> Value:
    x = n.x()
    return mul(n, x, n.b.add(p.Tanh(n.b.add(p.Softplus(x)).y)).y)


@onnx_op("Swish")
def _swish(n: Node) -> Value:
    x, alpha = n.x(), n.attr("alpha", 1.0)
    if alpha == 1:
        return n.b.add(p.Silu(x)).y
    return mul(n, x, n.b.add(p.Sigmoid(mul(n, x, alpha))).y)


@onnx_op("Softsign")
def _softsign(n: Node) -> Value:
    x = n.x()
    return n.b.add(p.Div(x, add(n, n.b.add(p.Abs(x)).y, 1.0))).y


@onnx_op("Shrink")
def _shrink(n: Node) -> Value:
    x, bias, edge = n.x(), n.attr("bias", 0.0), n.attr("lambd", 0.5)
    above, below = n.b.add(p.Gt(x, n.full(edge, x))).y, n.b.add(p.Lt(x, n.full(-edge, x))).y
    inner = _where(n, above, sub(n, x, bias), n.full(0, x))
    return _where(n, below, add(n, x, bias), inner)


@onnx_op("Clip", since=11)
def _clip(n: Node) -> Value:
    x, low, high = n.x(), n.opt(1), n.opt(2)
    if low is not None:
        x = n.b.add(p.Maximum(x, low)).y
    return x if high is None else n.b.add(p.Minimum(x, high)).y


# -- two operands and more ------------------------------------------------------------------

_BINARY: dict[str, type[p.Binary]] = {
    "Sub": p.Sub,
    "And": p.LogicalAnd,
    "Or": p.LogicalOr,
    "Xor": p.Ne,
    "Equal": p.Eq,
    "Greater": p.Gt,
    "GreaterOrEqual": p.Ge,
    "Less": p.Lt,
    "LessOrEqual": p.Le,
    "BitwiseAnd": p.BitwiseAnd,
    "BitwiseOr": p.BitwiseOr,
    "BitwiseXor": p.BitwiseXor,
}


def _binary(kind: type[p.Binary]) -> Any:
    def build(n: Node) -> Value:
        return n.b.add(kind(n.x(0), n.x(1))).y

    return build


for _name, _two in _BINARY.items():
    onnx_op(_name)(_binary(_two))


def _shared(*values: Value) -> TensorType:
    return TensorType(values[0].dtype, broadcast([v.shape for v in values]))


@onnx_op("Add")
def _add(n: Node) -> Value:
    """A bias behind a product of a weight goes into it."""
    for at in (0, 1):
        product, bias = n.x(1 - at).owner, n.given(at)
        if not isinstance(product, Linear) or product.bias is not None or bias.tensor is None:
            continue
        if bias.type == TensorType(product.y.dtype, product.weight.shape[:1]):
            return n.b.add(Linear(product.x, product.weight, n.x(at))).y
    return n.b.add(p.Add(n.x(0), n.x(1))).y


@onnx_op("Mul")
def _mul(n: Node) -> Value:
    lhs, rhs = n.x(0), n.x(1)
    idiom = silu(n.b, lhs, rhs) or gelu(n.b, lhs, rhs)
    return idiom or n.b.add(p.Mul(lhs, rhs)).y


@onnx_op("Reciprocal")
def _reciprocal(n: Node) -> Value:
    root = root_of(n.x())
    return n.b.add(p.Reciprocal(n.x()) if root is None else p.Rsqrt(root)).y


@onnx_op("Div")
def _div(n: Node) -> Value:
    """Integers are divided towards 0."""
    lhs, rhs = n.x(0), n.x(1)
    root = root_of(rhs)
    if root is not None and is_number(lhs, 1):
        return n.b.expand(n.b.add(p.Rsqrt(root)).y, broadcast([lhs.shape, rhs.shape]))
    if lhs.dtype.is_float:
        return n.b.add(p.Div(lhs, rhs)).y
    if lhs.dtype is DType.U8:
        return n.b.add(p.FloorDivide(lhs, rhs)).y
    return n.call("div.Tensor_mode", lhs, rhs, rounding_mode="trunc", kind=_shared(lhs, rhs))


@onnx_op("Mod", since=10)
def _mod(n: Node) -> Value:
    """The remainder has the sign of the divisor, or with ``fmod`` that of the dividend."""
    lhs, rhs = n.x(0), n.x(1)
    if n.attr("fmod", 0):
        return n.call("fmod.Tensor", lhs, rhs, kind=_shared(lhs, rhs))
    return n.b.add(p.Remainder(lhs, rhs)).y


@onnx_op("Pow")
def _pow(n: Node) -> Value:
    """In the type of the base; small powers by products."""
    lhs, rhs = n.x(0), n.x(1)
    given = n.given(1)
    if lhs.dtype.is_float and given.tensor is not None and given.tensor.numel() == 1:
        wide = broadcast([lhs.shape, rhs.shape])
        match given.tensor.item():
            case 1:
                return n.b.expand(lhs, wide)
            case 2:
                return n.b.expand(mul(n, lhs, lhs), wide)
            case 3:
                return n.b.expand(mul(n, mul(n, lhs, lhs), lhs), wide)
            case 0.5:
                return n.b.expand(n.b.add(p.Sqrt(lhs)).y, wide)
            case -1:
                return n.b.expand(n.b.add(p.Reciprocal(lhs)).y, wide)
            case _:
                pass
    if lhs.dtype.is_float != rhs.dtype.is_float:
        wide = DType.F64 if DType.F64 in (lhs.dtype, rhs.dtype) else DType.F32
        if lhs.dtype.is_float:
            return n.b.add(p.Pow(lhs, n.b.cast(rhs, lhs.dtype))).y
        y = n.b.add(p.Pow(n.b.cast(lhs, wide), n.b.cast(rhs, wide))).y
        return n.b.cast(y, lhs.dtype)
    return n.b.cast(n.b.add(p.Pow(lhs, rhs)).y, lhs.dtype)


@onnx_op("BitShift", since=11)
def _bit_shift(n: Node) -> Value:
    lhs, rhs = n.x(0), n.x(1)
    name = "__lshift__" if n.attr("direction") == "LEFT" else "__rshift__"
    return n.call(f"{name}.Tensor", lhs, rhs, kind=_shared(lhs, rhs))


@onnx_op("Max")
def _max(n: Node) -> Value:
    return _chain(n, p.Maximum)


@onnx_op("Min")
def _min(n: Node) -> Value:
    return _chain(n, p.Minimum)


@onnx_op("Sum")
def _sum(n: Node) -> Value:
    return _chain(n, p.Add)


@onnx_op("Mean")
def _mean(n: Node) -> Value:
    return mul(n, _chain(n, p.Add), 1 / len(n.xs()))


def _chain(n: Node, kind: type[p.Binary]) -> Value:
    first, *others = n.xs()
    for other in others:
        first = n.b.add(kind(first, other)).y
    return first


@onnx_op("Where")
def _select(n: Node) -> Value:
    return _where(n, n.x(0), n.x(1), n.x(2))


# -- types ----------------------------------------------------------------------------------


def convert(n: Node, x: Value, dtype: DType) -> Value:
    """A cast: to bool by what is not 0."""
    return n.b.cast(x, dtype)


@onnx_op("Cast")
def _cast(n: Node) -> Value:
    return convert(n, n.x(), dtype_of(n.attr("to")))


@onnx_op("CastLike", since=15)
def _cast_like(n: Node) -> Value:
    return convert(n, n.x(), n.given(1).type.dtype)


@onnx_op("BitCast")
def _bit_cast(n: Node) -> Value:
    x, dtype = n.x(), dtype_of(n.attr("to"))
    if DType.BOOL in (x.dtype, dtype) and x.dtype is not dtype:
        raise Unsupported("the bits of a bool")
    return n.call("view.dtype", x, dtype, kind=x.tensor.with_dtype(dtype))


__all__ = ["add", "clamp", "convert", "mul", "sub"]
