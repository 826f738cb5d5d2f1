"""One element of an element-wise op in C++, with torch's promotion and rounding points.

Values of f32, bf16 and f16 are computed in ``float`` and rounded to their own type by every op, as
eager does; f64 in ``double``; integers in their own type, wrapping; bool as 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fuseline.codegen.scalars import BITS, SIGNS, ScalarError, Spelling, Term
from fuseline.ir.core import Op
from fuseline.ir.ops import pointwise as ops
from fuseline.ir.types import DType

COMPUTE = {
    DType.F64: "double",
    DType.F32: "float",
    DType.BF16: "float",
    DType.F16: "float",
    DType.I64: "int64_t",
    DType.I32: "int32_t",
    DType.I16: "int16_t",
    DType.I8: "int8_t",
    DType.U8: "uint8_t",
    DType.BOOL: "bool",
}
"""The C++ type that a value of each dtype has inside a kernel."""

HALVES = {DType.BF16: "fl_bf16", DType.F16: "fl_f16"}
_UNSIGNED = {DType.I64: "uint64_t", DType.I32: "uint32_t"}


def literal(value: bool | int | float, dtype: DType) -> str:
    """The C++ constant of a value of a dtype, rounded to it by the caller."""
    if dtype is DType.BOOL:
        return "true" if value else "false"
    if not dtype.is_float:
        suffix = "LL" if dtype is DType.I64 else ""
        lowest = int(value) == -(1 << 63)
        return "INT64_MIN" if lowest else f"({COMPUTE[dtype]}){int(value)}{suffix}"
    number, suffix = float(value), "" if dtype is DType.F64 else "f"
    if math.isnan(number):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(number):
        return f"{'-' if number < 0 else ''}__builtin_inf{suffix}()"
    digits = 17 if dtype is DType.F64 else 9  # enough to give the same number back
    text = f"{number:.{digits}g}"
    text = text if "." in text or "e" in text else f"{text}.0"
    return f"({text}{suffix})" if text.startswith("-") else f"{text}{suffix}"


def round_to(text: str, dtype: DType) -> str:
    """A rounding point: the value as the dtype can hold it."""
    return f"fl_round<{HALVES[dtype]}>({text})" if dtype in HALVES else text


def _cast(text: str, dtypes: Sequence[DType]) -> str:
    return "".join(f"({COMPUTE[dtype]})" for dtype in reversed(dtypes)) + _grouped(text)


def _grouped(text: str) -> str:
    return text if text.isidentifier() else f"({text})"


_FUNCTIONS: dict[type[Op], str] = {
    ops.Floor: "fl_floor",
    ops.Ceil: "fl_ceil",
    ops.Exp: "fl_exp",
    ops.Log: "fl_log",
    ops.Log1p: "fl_log1p",
    ops.Sqrt: "fl_sqrt",
    ops.Rsqrt: "fl_rsqrt",
    ops.Sin: "fl_sin",
    ops.Cos: "fl_cos",
    ops.Tanh: "fl_tanh",
    ops.Erf: "fl_erf",
    ops.Sigmoid: "fl_sigmoid",
    ops.Silu: "fl_silu",
    ops.Softplus: "fl_softplus",
}


def _choose(condition: str, a: str, b: str) -> str:
    return f"({condition} ? {a} : {b})"


def _compare(sign: str, a: str, b: str, common: DType) -> str:
    del common  # C++ promotes as torch does
    return f"({a} {sign} {b})"


def _unary(op: Op, x: str, result: DType) -> str:
    match op:
        case ops.Neg():
            return f"(-{x})" if result.is_float else _negated(x, result)
        case ops.Abs():
            return f"fl_abs({x})" if result.is_float else f"({x} < 0 ? {_negated(x, result)} : {x})"
        case ops.BitwiseNot():
            return f"(!{x})" if result is DType.BOOL else f"({COMPUTE[result]})(~{x})"
        case ops.Sign():
            return f"({COMPUTE[result]})(({x} > 0) - ({x} < 0))"
        case ops.Relu():
            return f"({x} < 0 ? ({COMPUTE[result]})0 : {x})"
        case ops.Reciprocal():
            return f"(1 / {x})"
        case ops.Gelu():
            return f"fl_gelu_{'tanh' if op.approximate == 'tanh' else 'erf'}({x})"
        case _ if type(op) in _FUNCTIONS:
            return f"{_FUNCTIONS[type(op)]}({x})"
        case _:
            raise ScalarError(f"{op.name} has no element-wise form")


def _negated(x: str, dtype: DType) -> str:
    wrap = _UNSIGNED.get(dtype, "int32_t")
    return _integer(f"({wrap})0 - ({wrap}){x}", dtype)


def _integer(text: str, dtype: DType) -> str:
    """Integer arithmetic that wraps: done unsigned, as signed overflow has no meaning in C++."""
    return f"({COMPUTE[dtype]})({text})"


def _floats(op: Op, a: str, b: str, result: DType, constant: bool | int | float | None) -> str:
    match op:
        case ops.Add() | ops.Sub() | ops.Mul():
            return f"({a} {SIGNS[type(op)]} {b})"
        case ops.Div():
            return f"({a} / {b})"
        case ops.Maximum() | ops.Minimum():
            return f"fl_{'max' if isinstance(op, ops.Maximum) else 'min'}({a}, {b})"
        case ops.FloorDivide():
            return f"fl_floor_div({a}, {b})"
        case ops.Remainder():
            return f"fl_remainder({a}, {b})"
        case ops.Pow():
            return _power(a, b, constant)
        case _:
            raise ScalarError(f"{op.name} of {result}")


def _integers(op: Op, a: str, b: str, result: DType) -> str:
    match op:
        case ops.Add() | ops.Sub() | ops.Mul():
            # i8, i16 and u8 are promoted to int, where their products cannot overflow
            wrap = _UNSIGNED.get(result, "int32_t")
            return _integer(f"({wrap}){a} {SIGNS[type(op)]} ({wrap}){b}", result)
        case ops.Maximum():
            return f"({a} > {b} ? {a} : {b})"
        case ops.Minimum():
            return f"({a} < {b} ? {a} : {b})"
        case _ if type(op) in BITS:
            return _integer(f"{a} {BITS[type(op)]} {b}", result)
        case ops.FloorDivide() | ops.Remainder():
            name = "fl_floor_div" if isinstance(op, ops.FloorDivide) else "fl_remainder"
            return _integer(f"{name}((int64_t){a}, (int64_t){b})", result)
        case ops.Pow():
            return _integer(f"fl_ipow({a}, {b})", result)
        case _:
            raise ScalarError(f"{op.name} of {result}")


_POWERS = {2.0: "({x} * {x})", 3.0: "({x} * {x} * {x})", 0.5: "fl_sqrt({x})", 1.0: "{x}",
           -0.5: "fl_rsqrt({x})", -1.0: "(1 / {x})", -2.0: "(1 / ({x} * {x}))"}  # fmt: skip


def _power(a: str, b: str, exponent: bool | int | float | None) -> str:
    form = None if exponent is None else _POWERS.get(float(exponent))
    return f"fl_pow({a}, {b})" if form is None else form.format(x=a)


CPP = Spelling(
    literal=literal,
    computed=COMPUTE.__getitem__,
    cast=_cast,
    round_to=round_to,
    choose=_choose,
    compare=_compare,
    unary=_unary,
    floats=_floats,
    integers=_integers,
)
convert = CPP.convert
expression = CPP.expression

__all__ = [
    "COMPUTE",
    "CPP",
    "HALVES",
    "ScalarError",
    "Term",
    "convert",
    "expression",
    "literal",
    "round_to",
]
