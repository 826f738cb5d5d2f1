"""One element of an element-wise op in C++, with torch's promotion and rounding points.

Values of f32, bf16 and f16 are computed in ``float`` and rounded to their own type by every op, as
eager does; f64 in ``double``; integers in their own type, wrapping; bool as 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Op
from fuseline.ir.ops import pointwise as ops
from fuseline.ir.types import DType, TensorType, promote

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


class ScalarError(ValueError):
    """An op, or a type of operand, that has no C++ form; the message says why."""


@dataclass(frozen=True)
class Term:
    """A C++ expression, the type of the tensor that it is an element of, its constant if known."""

    text: str
    type: TensorType
    constant: bool | int | float | None = None

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype


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


def convert(text: str, source: DType, target: DType) -> str:
    """An element cast from one dtype to another, rounded to it."""
    if source is target:
        return text
    if target is DType.BOOL:
        return f"({text} != 0)"
    if target.is_float:
        wide = DType.F64 if target is DType.F64 else DType.F32
        same = COMPUTE[source] == COMPUTE[wide]
        return round_to(text if same else f"({COMPUTE[wide]}){_grouped(text)}", target)
    if source.is_float and target in (DType.U8, DType.I8, DType.I16):
        return f"({COMPUTE[target]})(int64_t){_grouped(text)}"
    return f"({COMPUTE[target]}){_grouped(text)}"


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
_COMPARISONS: dict[type[Op], str] = {
    ops.Eq: "==",
    ops.Ne: "!=",
    ops.Lt: "<",
    ops.Le: "<=",
    ops.Gt: ">",
    ops.Ge: ">=",
}
_BITS: dict[type[Op], str] = {ops.BitwiseAnd: "&", ops.BitwiseOr: "|", ops.BitwiseXor: "^"}
_WRAPPING: dict[type[Op], str] = {ops.Add: "+", ops.Sub: "-", ops.Mul: "*"}
_ON_BOOLS: dict[type[Op], str] = {
    ops.Add: "|", ops.Mul: "&", ops.Maximum: "|", ops.Minimum: "&",
}  # fmt: skip
_OPMATH = (ops.Mul, ops.Div, ops.FloorDivide)
"""With a 0-d right operand, torch does not round it to a 16-bit type before these."""


def expression(op: Op, terms: Sequence[Term], result: DType) -> str:
    """The value of one element of the op's result, before it is rounded to ``result``.

    Raises:
        ScalarError: the op has no C++ form for these types.

    """
    match op:
        case ops.Cast():
            return _cast(terms[0], result)
        case ops.Where():
            return f"({terms[0].text} ? {_as(terms[1], result)} : {_as(terms[2], result)})"
        case ops.LogicalAnd() | ops.LogicalOr():
            both = [convert(t.text, t.dtype, DType.BOOL) for t in terms]
            return f"({both[0]} {'&' if isinstance(op, ops.LogicalAnd) else '|'} {both[1]})"
        case ops.Compare():
            common = promote([t.type for t in terms])
            both = [_as(t, common) for t in terms]
            return f"({both[0]} {_COMPARISONS[type(op)]} {both[1]})"
        case ops.Binary():
            return _binary(op, terms, result)
        case _:
            return _unary(op, terms, result)


def _cast(term: Term, result: DType) -> str:
    if result in HALVES:  # the caller rounds
        return convert(term.text, term.dtype, DType.F32)
    return convert(term.text, term.dtype, result)


def _as(term: Term, dtype: DType) -> str:
    return convert(term.text, term.dtype, dtype)


def _unary(op: Op, terms: Sequence[Term], result: DType) -> str:
    if len(terms) != 1:
        raise ScalarError(f"{op.name} has no element-wise form")
    x = _as(terms[0], result) if result.is_float else terms[0].text
    match op:
        case ops.Neg():
            return f"(-{x})" if result.is_float else _negated(x, result)
        case ops.Abs():
            return f"fl_abs({x})" if result.is_float else f"({x} < 0 ? {_negated(x, result)} : {x})"
        case ops.BitwiseNot():
            return f"(!{x})" if result is DType.BOOL else f"({COMPUTE[result]})(~{x})"
        case ops.LogicalNot():
            return f"({x} == 0)"
        case ops.Sign():
            return f"({COMPUTE[result]})(({x} > 0) - ({x} < 0))"
        case ops.Relu():
            return f"({x} < 0 ? ({COMPUTE[result]})0 : {x})"
        case ops.Reciprocal():
            return f"(1 / {x})"
        case ops.Floor() | ops.Ceil() if not result.is_float:
            return x
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


def _binary(op: Op, terms: Sequence[Term], result: DType) -> str:
    kind = type(op)
    if result is DType.BOOL:
        if kind not in _ON_BOOLS | _BITS:
            raise ScalarError(f"{op.name} of bools")
        sign = (_ON_BOOLS | _BITS)[kind]
        return f"({terms[0].text} {sign} {terms[1].text})"
    a, b = _as(terms[0], result), _as(terms[1], result)
    if result in HALVES and isinstance(op, _OPMATH) and not terms[1].type.rank:
        b = convert(terms[1].text, terms[1].dtype, DType.F32)
    if not result.is_float:
        return _integers(op, a, b, terms[1], result)
    match op:
        case ops.Add() | ops.Sub() | ops.Mul():
            return f"({a} {_WRAPPING[kind]} {b})"
        case ops.Div():
            return f"({a} / {b})"
        case ops.Maximum() | ops.Minimum():
            return f"fl_{'max' if isinstance(op, ops.Maximum) else 'min'}({a}, {b})"
        case ops.FloorDivide():
            return f"fl_floor_div({a}, {b})"
        case ops.Remainder():
            return f"fl_remainder({a}, {b})"
        case ops.Pow():
            return _power(a, b, terms[1].constant)
        case _:
            raise ScalarError(f"{op.name} of {result}")


def _integers(op: Op, a: str, b: str, right: Term, result: DType) -> str:
    kind = type(op)
    match op:
        case ops.Add() | ops.Sub() | ops.Mul():
            # i8, i16 and u8 are promoted to int, where their products cannot overflow
            wrap = _UNSIGNED.get(result, "int32_t")
            return _integer(f"({wrap}){a} {_WRAPPING[kind]} ({wrap}){b}", result)
        case ops.Maximum():
            return f"({a} > {b} ? {a} : {b})"
        case ops.Minimum():
            return f"({a} < {b} ? {a} : {b})"
        case _ if kind in _BITS:
            return _integer(f"{a} {_BITS[kind]} {b}", result)
        case ops.FloorDivide() | ops.Remainder():
            if not right.constant:
                raise ScalarError(f"{op.name} by an integer that may be 0, where torch raises")
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
