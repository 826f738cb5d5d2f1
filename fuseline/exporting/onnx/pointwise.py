"""Element-wise ops. Types are promoted by casts: ONNX has none of its own.

Ops that ONNX spells with several operators are computed in float32 for narrower floats, so that
they are rounded once, as torch does. Integers narrower than 32 bits are computed in those, for
which runtimes have operators, and wrap when they are cast back.
"""

from __future__ import annotations

import math

import torch

from fuseline.exporting.onnx.registry import emits
from fuseline.exporting.onnx.writer import Writer
from fuseline.ir.core import Op, Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Full
from fuseline.ir.types import DType, promote

HALVES = (DType.F16, DType.BF16)
_NARROW = (DType.I8, DType.I16, DType.U8)
_AS_BOOL = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}


def wide(dtype: DType) -> DType:
    """The type that an op of several operators is computed in."""
    return DType.F32 if dtype in HALVES else DType.I32 if dtype in _NARROW else dtype


def as_wide(w: Writer, value: Value, dtype: DType) -> str:
    """A value as an element type, widened."""
    return w.cast(w.of(value, dtype), dtype, wide(dtype))


_ARITHMETIC: dict[type[Op], str] = {p.Add: "Add", p.Sub: "Sub", p.Mul: "Mul", p.Div: "Div"}


@emits(*_ARITHMETIC)
def _arithmetic(w: Writer, op: p.Binary) -> str:
    kind, dtype = _ARITHMETIC[type(op)], op.y.dtype
    if dtype is DType.BOOL and kind in _AS_BOOL:
        return w.node(_AS_BOOL[kind], w[op.lhs], w[op.rhs])
    if dtype in _NARROW or _keeps_number(op, dtype):
        lhs, rhs = (_unrounded(w, value, dtype) for value in (op.lhs, op.rhs))
        return w.cast(w.node(kind, lhs, rhs), wide(dtype), dtype)
    return w.node(kind, w.of(op.lhs, dtype), w.of(op.rhs, dtype))


def _keeps_number(op: p.Binary, dtype: DType) -> bool:
    """Whether a number beside a tensor of narrow floats has more digits than these.

    torch computes in float32 there, and does not round the number to the narrow type.
    """
    return dtype in HALVES and any(_is_wide_number(value, dtype) for value in (op.lhs, op.rhs))


def _is_wide_number(value: Value, dtype: DType) -> bool:
    if value.tensor.rank or not value.dtype.is_float or value.dtype is dtype:
        return False
    number = constant(value)
    return number is None or float(torch.tensor(number, dtype=dtype.torch)) != number


def _unrounded(w: Writer, value: Value, dtype: DType) -> str:
    if dtype in HALVES and _is_wide_number(value, dtype):
        return w.of(value, wide(dtype))
    return as_wide(w, value, dtype)


_EXTREMES: dict[type[Op], str] = {p.Maximum: "Max", p.Minimum: "Min"}


@emits(*_EXTREMES)
def _extreme(w: Writer, op: p.Binary) -> str:
    """NaN where either operand is: runtimes differ there, so it is said."""
    kind, dtype = _EXTREMES[type(op)], op.y.dtype
    if dtype is DType.BOOL:
        return w.node(_AS_BOOL[kind], w[op.lhs], w[op.rhs])
    lhs, rhs = as_wide(w, op.lhs, dtype), as_wide(w, op.rhs, dtype)
    found = w.node(kind, lhs, rhs)
    if dtype.is_float:
        for side, value in ((lhs, op.lhs), (rhs, op.rhs)):
            if not _is_number(value):
                found = w.node("Where", w.node("IsNaN", side), side, found)
    return w.cast(found, wide(dtype), dtype)


def _is_number(value: Value) -> bool:
    """Whether a value is a constant other than NaN."""
    number = constant(value)
    return number is not None and not math.isnan(number)


def constant(value: Value) -> float | None:
    """The number that every element of a value is, where the program says so."""
    owner = value.owner
    while isinstance(owner, p.Cast) and owner.dtype.is_float:
        owner = owner.x.owner
    if isinstance(owner, Full) and isinstance(owner.value, (bool, int, float)):
        return float(owner.value)
    return None


def remainder(w: Writer, lhs: str, rhs: str, dtype: DType) -> tuple[str, str, str]:
    """The remainder of the sign of lhs, a number of 0, and where its sign is not that of rhs."""
    rest = w.node("Mod", lhs, rhs, fmod=1)
    zero = w.scalar(0, dtype)
    other = w.node("Xor", w.node("Less", rest, zero), w.node("Less", rhs, zero))
    return rest, zero, w.node("And", other, w.node("Not", w.node("Equal", rest, zero)))


@emits(p.Remainder)
def _remainder(w: Writer, op: p.Remainder) -> str:
    dtype = op.y.dtype
    lhs, rhs = as_wide(w, op.lhs, dtype), as_wide(w, op.rhs, dtype)
    if not dtype.is_float:
        return w.cast(w.node("Mod", lhs, rhs), wide(dtype), dtype)
    rest, _, other = remainder(w, lhs, rhs, wide(dtype))
    found = w.node("Where", other, w.node("Add", rest, rhs), rest)
    return w.cast(found, wide(dtype), dtype)


@emits(p.FloorDivide)
def _floor_divide(w: Writer, op: p.FloorDivide) -> str:
    """As torch: by the remainder, which is exact, and not by rounding the quotient."""
    dtype = op.y.dtype
    lhs, rhs = as_wide(w, op.lhs, dtype), as_wide(w, op.rhs, dtype)
    if not dtype.is_float:
        apart = w.node("Sub", lhs, w.node("Mod", lhs, rhs))
        return w.cast(w.node("Div", apart, rhs), wide(dtype), dtype)
    rest, zero, other = remainder(w, lhs, rhs, wide(dtype))
    one, half = w.scalar(1, wide(dtype)), w.scalar(0.5, wide(dtype))
    quotient = w.node("Div", w.node("Sub", lhs, rest), rhs)
    quotient = w.node("Where", other, w.node("Sub", quotient, one), quotient)
    whole = w.node("Floor", quotient)
    above = w.node("Greater", w.node("Sub", quotient, whole), half)
    whole = w.node("Where", above, w.node("Add", whole, one), whole)
    plain = w.node("Div", lhs, rhs)
    whole = w.node("Where", w.node("Equal", quotient, zero), w.node("Mul", plain, zero), whole)
    found = w.node("Where", w.node("Equal", rhs, zero), plain, whole)
    return w.cast(found, wide(dtype), dtype)


@emits(p.Pow)
def _pow(w: Writer, op: p.Pow) -> str:
    """Small powers are products, as in torch."""
    dtype = op.y.dtype
    base, number = as_wide(w, op.lhs, dtype), constant(op.rhs)
    found: str | None = None
    if number is not None and op.lhs.tensor.rank and not op.rhs.tensor.rank:
        found = _power(w, base, number, dtype)
    if found is None:
        found = w.node("Pow", base, as_wide(w, op.rhs, dtype))
    return w.cast(found, wide(dtype), dtype)


def _power(w: Writer, base: str, number: float, dtype: DType) -> str | None:
    if number in (2.0, 3.0):
        square = w.node("Mul", base, base)
        return square if number == 2.0 else w.node("Mul", square, base)
    if not dtype.is_float:
        return None
    match number:
        case 0.5:
            return w.node("Sqrt", base)
        case -0.5:
            return w.node("Reciprocal", w.node("Sqrt", base))
        case -1.0:
            return w.node("Reciprocal", base)
        case -2.0:
            return w.node("Reciprocal", w.node("Mul", base, base))
        case _:
            return None


_BITWISE: dict[type[Op], tuple[str, str]] = {
    p.BitwiseAnd: ("BitwiseAnd", "And"),
    p.BitwiseOr: ("BitwiseOr", "Or"),
    p.BitwiseXor: ("BitwiseXor", "Xor"),
}


@emits(*_BITWISE)
def _bitwise(w: Writer, op: p.Binary) -> str:
    dtype = op.y.dtype
    kind = _BITWISE[type(op)][dtype is DType.BOOL]
    return w.node(kind, w.of(op.lhs, dtype), w.of(op.rhs, dtype))


_COMPARE: dict[type[Op], str] = {
    p.Eq: "Equal",
    p.Ne: "Equal",
    p.Lt: "Less",
    p.Le: "LessOrEqual",
    p.Gt: "Greater",
    p.Ge: "GreaterOrEqual",
}


@emits(*_COMPARE)
def _compare(w: Writer, op: p.Compare) -> str:
    dtype = promote([op.lhs.tensor, op.rhs.tensor])
    kind = _COMPARE[type(op)]
    small = dtype in _NARROW or (dtype is DType.BOOL and kind != "Equal")
    lhs, rhs = (
        w.cast(w.of(v, dtype), dtype, DType.I32 if small else dtype) for v in (op.lhs, op.rhs)
    )
    found = w.node(kind, lhs, rhs)
    return w.node("Not", found) if isinstance(op, p.Ne) else found


_LOGICAL: dict[type[Op], str] = {p.LogicalAnd: "And", p.LogicalOr: "Or"}


@emits(*_LOGICAL)
def _logical(w: Writer, op: p.Compare) -> str:
    return w.node(_LOGICAL[type(op)], w.of(op.lhs, DType.BOOL), w.of(op.rhs, DType.BOOL))


_PLAIN: dict[type[Op], str] = {
    p.Neg: "Neg",
    p.Abs: "Abs",
    p.Exp: "Exp",
    p.Log: "Log",
    p.Sqrt: "Sqrt",
    p.Reciprocal: "Reciprocal",
    p.Sin: "Sin",
    p.Cos: "Cos",
    p.Tanh: "Tanh",
    p.Erf: "Erf",
    p.Sigmoid: "Sigmoid",
}


@emits(*_PLAIN)
def _plain(w: Writer, op: p.Unary) -> str:
    """One operator; integers are made floats first where the result is one."""
    dtype = op.y.dtype
    found = w.node(
        _PLAIN[type(op)], as_wide(w, op.x, dtype) if dtype in _NARROW else w.of(op.x, dtype)
    )
    return w.cast(found, wide(dtype), dtype) if dtype in _NARROW else found


_ROUNDING: dict[type[Op], str] = {p.Floor: "Floor", p.Ceil: "Ceil"}


@emits(*_ROUNDING)
def _rounding(w: Writer, op: p.Unary) -> str:
    return w.node(_ROUNDING[type(op)], w[op.x]) if op.x.dtype.is_float else w[op.x]


@emits(p.BitwiseNot)
def _bitwise_not(w: Writer, op: p.BitwiseNot) -> str:
    return w.node("Not" if op.x.dtype is DType.BOOL else "BitwiseNot", w[op.x])


@emits(p.LogicalNot)
def _logical_not(w: Writer, op: p.LogicalNot) -> str:
    return w.node("Not", w.of(op.x, DType.BOOL))


@emits(p.Sign)
def _sign(w: Writer, op: p.Sign) -> str:
    """0 for NaN, as in torch."""
    dtype = op.x.dtype
    if dtype is DType.BOOL:
        return w[op.x]
    x = as_wide(w, op.x, dtype)
    found = w.node("Sign", x)
    if dtype.is_float:
        found = w.node("Where", w.node("IsNaN", x), w.scalar(0, wide(dtype)), found)
    return w.cast(found, wide(dtype), dtype)


@emits(p.Relu)
def _relu(w: Writer, op: p.Relu) -> str:
    """``x <= 0 ? 0 : x``, which keeps NaN."""
    dtype = op.x.dtype
    x, zero = as_wide(w, op.x, dtype), w.scalar(0, wide(dtype))
    found = w.node("Where", w.node("LessOrEqual", x, zero), zero, x)
    return w.cast(found, wide(dtype), dtype)


@emits(p.Rsqrt)
def _rsqrt(w: Writer, op: p.Rsqrt) -> str:
    x = as_wide(w, op.x, op.y.dtype)
    return w.cast(w.node("Reciprocal", w.node("Sqrt", x)), wide(op.y.dtype), op.y.dtype)


@emits(p.Log1p)
def _log1p(w: Writer, op: p.Log1p) -> str:
    """``log(1 + x)`` times the share of x that ``1 + x`` has kept, where x is small."""
    dtype = op.y.dtype
    x, one = as_wide(w, op.x, dtype), w.scalar(1, wide(dtype))
    total = w.node("Add", one, x)
    plain = w.node("Log", total)
    kept = w.node("Sub", total, one)
    better = w.node("Mul", plain, w.node("Div", x, kept))
    lost = w.node("Equal", kept, w.scalar(0, wide(dtype)))
    large = w.node("GreaterOrEqual", w.node("Abs", x), w.scalar(0.5, wide(dtype)))
    found = w.node("Where", large, plain, w.node("Where", lost, x, better))
    return w.cast(found, wide(dtype), dtype)


def silu(w: Writer, x: str) -> str:
    """``x * sigmoid(x)`` of a float32 or float64."""
    if w.functions.opset >= 24:  # the first that has it
        return w.node("Swish", x)
    return w.node("Mul", x, w.node("Sigmoid", x))


@emits(p.Silu)
def _silu(w: Writer, op: p.Silu) -> str:
    dtype = op.y.dtype
    return w.cast(silu(w, as_wide(w, op.x, dtype)), wide(dtype), dtype)


@emits(p.Softplus)
def _softplus(w: Writer, op: p.Softplus) -> str:
    dtype = op.y.dtype
    x = as_wide(w, op.x, dtype)
    linear = w.node("Greater", x, w.scalar(20, wide(dtype)))
    found = w.node("Where", linear, x, w.node("Softplus", x))
    return w.cast(found, wide(dtype), dtype)


@emits(p.Gelu)
def _gelu(w: Writer, op: p.Gelu) -> str:
    dtype = op.y.dtype
    if dtype is DType.F64:
        return _exact_gelu(w, w.of(op.x, dtype), op.approximate)
    found = w.node("Gelu", as_wide(w, op.x, dtype), approximate=op.approximate)
    return w.cast(found, wide(dtype), dtype)


def _exact_gelu(w: Writer, x: str, approximate: str) -> str:
    """Of float64: the numbers in the standard operator are float32."""

    def times(name: str, number: float) -> str:
        return w.node("Mul", name, w.scalar(number, DType.F64))

    if approximate == "tanh":
        cube = w.node("Mul", x, w.node("Mul", x, x))
        inner = w.node("Add", x, times(cube, 0.044715))
        bent = w.node("Tanh", times(inner, math.sqrt(2 / math.pi)))
    else:
        bent = w.node("Erf", times(x, math.sqrt(0.5)))
    return w.node("Mul", times(x, 0.5), w.node("Add", bent, w.scalar(1.0, DType.F64)))


@emits(p.Cast)
def _cast(w: Writer, op: p.Cast) -> str:
    return w.of(op.x, op.dtype)


@emits(p.Where)
def _where(w: Writer, op: p.Where) -> str:
    dtype, condition = op.y.dtype, w[op.condition]
    lhs, rhs = as_wide(w, op.lhs, dtype), as_wide(w, op.rhs, dtype)
    if dtype is DType.BOOL:
        yes, no = w.node("And", condition, lhs), w.node("And", w.node("Not", condition), rhs)
        return w.node("Or", yes, no)
    return w.cast(w.node("Where", condition, lhs, rhs), wide(dtype), dtype)


__all__ = ["HALVES", "as_wide", "constant", "silu", "wide"]
