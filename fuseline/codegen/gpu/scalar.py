"""One element-wise op in Triton, with torch's promotion and rounding points.

Values of f32, bf16 and f16 are computed in float32 and rounded to their own type by every op, as
eager does; f64 in float64; integers in their own type, wrapping; bool as int1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.gpu.kernel import TL_TYPES
from fuseline.ir.core import Op
from fuseline.ir.ops import pointwise as ops
from fuseline.ir.types import DType, TensorType, promote

HALVES = (DType.BF16, DType.F16)
_NARROW = (DType.U8, DType.I8, DType.I16)


class ScalarError(ValueError):
    """An op, or a type of operand, that has no form in Triton; the message says why."""


def stored(dtype: DType) -> str:
    """Triton's type of an element in memory."""
    return TL_TYPES[dtype.value]


def computed(dtype: DType) -> str:
    """Triton's type of an element inside of a kernel."""
    return "tl.float32" if dtype in HALVES else stored(dtype)


@dataclass(frozen=True)
class Term:
    """An expression, the type of the tensor that it is an element of, its constant if known."""

    text: str
    type: TensorType
    constant: bool | int | float | None = None

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype


def literal(value: bool | int | float, dtype: DType) -> str:
    """The constant of a value of a dtype, which was rounded to it by the caller.

    Like every value of a kernel it has two axes: Triton's interpreter takes a comparison of plain
    numbers for a number.
    """
    if not dtype.is_float:
        number = str(int(value))
    elif math.isfinite(value):
        number = repr(float(value))
    else:
        number = f'float("{float(value)}")'
    return f"tl.full((1, 1), {number}, {computed(dtype)})"


def widened(number: str) -> str:
    """An integer of the kernel, in 64 bits and with two axes."""
    return f"(tl.zeros((1, 1), tl.int64) + {number})"


def round_to(text: str, dtype: DType) -> str:
    """A rounding point: the value as the dtype can hold it."""
    return f"{_grouped(text)}.to({stored(dtype)}).to(tl.float32)" if dtype in HALVES else text


def to_store(text: str, source: DType, target: DType) -> str:
    """A value that was computed as ``source``, not rounded yet, as it is written to memory."""
    return text if computed(source) == stored(target) else f"{_grouped(text)}.to({stored(target)})"


def convert(text: str, source: DType, target: DType) -> str:
    """An element cast from one dtype to another, rounded to it."""
    if source is target:
        return text
    if target is DType.BOOL:
        return f"({text} != 0)"
    if target.is_float:
        wide = DType.F64 if target is DType.F64 else DType.F32
        same = computed(source) == computed(wide)
        return round_to(text if same else f"{_grouped(text)}.to({computed(wide)})", target)
    if source.is_float and target in _NARROW:  # beyond its range torch keeps the low bits
        return f"{_grouped(text)}.to(tl.int64).to({computed(target)})"
    return f"{_grouped(text)}.to({computed(target)})"


def _grouped(text: str) -> str:
    return text if text.isidentifier() or text.startswith(("tl.full(", "(")) else f"({text})"


_PLAIN: dict[type[Op], str] = {
    ops.Floor: "tl.floor({x})",
    ops.Ceil: "tl.ceil({x})",
    ops.Exp: "fl_exp({x}, {short})",
    ops.Log: "fl_log({x})",
    ops.Log1p: "fl_log1p({x})",
    ops.Sqrt: "tl.sqrt_rn({x})",
    ops.Rsqrt: "tl.rsqrt({x})",
    ops.Reciprocal: "tl.div_rn(1.0, {x})",
    ops.Sin: "tl.sin({x})",
    ops.Cos: "tl.cos({x})",
    ops.Tanh: "fl_tanh({x}, {short})",
    ops.Erf: "tl.erf({x})",
    ops.Sigmoid: "fl_sigmoid({x}, {short})",
    ops.Silu: "fl_silu({x}, {short})",
    ops.Softplus: "fl_softplus({x}, {short})",
}
_WIDE: dict[type[Op], str] = {
    ops.Floor: "tl.floor({x})",
    ops.Ceil: "tl.ceil({x})",
    ops.Exp: "tl.exp({x})",
    ops.Log: "tl.log({x})",
    ops.Sqrt: "tl.sqrt({x})",
    ops.Rsqrt: "(1.0 / tl.sqrt({x}))",
    ops.Reciprocal: "(1.0 / {x})",
    ops.Erf: "tl.erf({x})",
    ops.Sigmoid: "(1.0 / (1.0 + tl.exp(-{x})))",
    ops.Silu: "({x} / (1.0 + tl.exp(-{x})))",
}
"""In float64, where CUDA's own functions are to be had."""

_NEEDS: dict[str, tuple[str, ...]] = {
    "fl_log1p": ("fl_log",),
    "fl_sigmoid": ("fl_exp",),
    "fl_silu": ("fl_exp",),
    "fl_softplus": ("fl_exp", "fl_log", "fl_log1p"),
    "fl_tanh": ("fl_exp",),
    "fl_gelu_tanh": ("fl_exp",),
    "fl_remainder": ("fl_fmod",),
}
"""The functions of `_math.py.jinja` that others call."""

SHORT = ("bf16", "f16")
"""The types of results, by name, for which the functions' argument ``short`` is true."""


def functions(lines: Sequence[str]) -> tuple[str, ...]:
    """The functions of `_math.py.jinja` that statements call, and those that these need."""
    names = {
        part.split("(")[0] for line in lines for part in _names(line) if part.startswith("fl_")
    }
    for name in tuple(names):
        names.update(_NEEDS.get(name, ()))
    return tuple(sorted(names))


def _names(line: str) -> list[str]:
    for sign in "(),=+-*/":
        line = line.replace(sign, " ")
    return line.split()


_COMPARISONS: dict[type[Op], str] = {
    ops.Eq: "==",
    ops.Ne: "!=",
    ops.Lt: "<",
    ops.Le: "<=",
    ops.Gt: ">",
    ops.Ge: ">=",
}
_BITS: dict[type[Op], str] = {ops.BitwiseAnd: "&", ops.BitwiseOr: "|", ops.BitwiseXor: "^"}
_SIGNS: dict[type[Op], str] = {ops.Add: "+", ops.Sub: "-", ops.Mul: "*"}
_ON_BOOLS: dict[type[Op], str] = {
    ops.Add: "|", ops.Mul: "&", ops.Maximum: "|", ops.Minimum: "&",
}  # fmt: skip
_DIVISIONS: dict[type[Op], str] = {
    ops.FloorDivide: "fl_floor_div",
    ops.Remainder: "fl_remainder",
}
_OPMATH = (ops.Mul, ops.Div, ops.FloorDivide)
"""With a 0-d right operand, torch does not round it to a 16-bit type before these."""


def expression(op: Op, terms: Sequence[Term], result: DType) -> str:
    """The value of one element of the op's result, before it is rounded to ``result``.

    Raises:
        ScalarError: the op has no form in Triton for these types.

    """
    match op:
        case ops.Cast():
            target = DType.F32 if result in HALVES else result  # the caller rounds
            return convert(terms[0].text, terms[0].dtype, target)
        case ops.Where():
            return f"tl.where({terms[0].text}, {_as(terms[1], result)}, {_as(terms[2], result)})"
        case ops.LogicalAnd() | ops.LogicalOr():
            both = [convert(t.text, t.dtype, DType.BOOL) for t in terms]
            return f"({both[0]} {'&' if isinstance(op, ops.LogicalAnd) else '|'} {both[1]})"
        case ops.Compare():
            common = promote([t.type for t in terms])
            both = [_as(t, common) for t in terms]
            if common is DType.BOOL:
                both = [convert(text, common, DType.I32) for text in both]
            return f"({both[0]} {_COMPARISONS[type(op)]} {both[1]})"
        case ops.Binary():
            return _binary(op, terms, result)
        case _:
            return _unary(op, terms, result)


def _as(term: Term, dtype: DType) -> str:
    return convert(term.text, term.dtype, dtype)


def _unary(op: Op, terms: Sequence[Term], result: DType) -> str:
    if len(terms) != 1:
        raise ScalarError(f"{op.name} has no element-wise form")
    x = _as(terms[0], result) if result.is_float else terms[0].text
    kind = computed(result)
    match op:
        case ops.Neg():
            return f"({x} * -1.0)" if result.is_float else f"(-{x})"
        case ops.Abs():
            unsigned = result in (DType.U8, DType.BOOL)
            return f"tl.abs({x})" if result.is_float else x if unsigned else _distance(x)
        case ops.BitwiseNot():
            return f"({x} == 0)" if result is DType.BOOL else f"(~{x})"
        case ops.LogicalNot():
            return f"({x} == 0)"
        case ops.Sign():
            return x if result is DType.BOOL else f"(({x} > 0).to({kind}) - ({x} < 0).to({kind}))"
        case ops.Relu():
            return f"tl.where({x} < 0, {literal(0, result)}, {x})"
        case ops.Floor() | ops.Ceil() if not result.is_float:
            return x
        case ops.Gelu() if result is not DType.F64:
            tanh = op.approximate == "tanh"
            return f"fl_gelu_tanh({x}, {result in HALVES})" if tanh else f"fl_gelu_erf({x})"
        case _:
            form = (_WIDE if result is DType.F64 else _PLAIN).get(type(op))
            if form is None:
                raise ScalarError(f"{op.name} of {result}; the kernel has none in that precision")
            return form.format(x=x, short=result in HALVES)


def _distance(x: str) -> str:
    return f"tl.where({x} < 0, -{x}, {x})"


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
            return f"({a} {_SIGNS[kind]} {b})"
        case ops.Div():
            return f"({a} / {b})" if result is DType.F64 else f"tl.div_rn({a}, {b})"
        case ops.Maximum():
            return f"tl.where(({a} > {b}) | ({a} != {a}), {a}, {b})"
        case ops.Minimum():
            return f"tl.where(({a} < {b}) | ({a} != {a}), {a}, {b})"
        case ops.Pow() if (form := _power(terms[1].constant, result)) is not None:
            return form.format(x=a)
        case ops.FloorDivide() | ops.Remainder() | ops.Pow() if result is not DType.F64:
            return f"{_DIVISIONS.get(kind, 'fl_pow')}({a}, {b})"
        case _:
            raise ScalarError(f"{op.name} of {result}; the kernel has none in that precision")


def _integers(op: Op, a: str, b: str, right: Term, result: DType) -> str:
    kind, wide = computed(result), [f"{_grouped(t)}.to(tl.int64)" for t in (a, b)]
    match op:
        case ops.Add() | ops.Sub() | ops.Mul():
            return f"({a} {_SIGNS[type(op)]} {b})"
        case ops.Maximum():
            return f"tl.where({a} > {b}, {a}, {b})"
        case ops.Minimum():
            return f"tl.where({a} < {b}, {a}, {b})"
        case _ if type(op) in _BITS:
            return f"({a} {_BITS[type(op)]} {b})"
        case ops.FloorDivide() | ops.Remainder():
            if not right.constant:
                raise ScalarError(f"{op.name} by an integer that may be 0, where torch raises")
            name = "fl_whole_div" if isinstance(op, ops.FloorDivide) else "fl_whole_remainder"
            return f"{name}({wide[0]}, {wide[1]}).to({kind})"
        case ops.Pow():
            bits = 8 * result.itemsize - (result is not DType.U8)
            return f"fl_whole_pow({wide[0]}, {wide[1]}, {bits}).to({kind})"
        case _:
            raise ScalarError(f"{op.name} of {result}")


_POWERS = {2.0: "({x} * {x})", 3.0: "({x} * {x} * {x})", 1.0: "{x}"}
_ROOTS = {
    0.5: "tl.sqrt_rn({x})",
    -0.5: "tl.rsqrt({x})",
    -1.0: "tl.div_rn(1.0, {x})",
    -2.0: "tl.div_rn(1.0, {x} * {x})",
}
_WIDE_ROOTS = {
    0.5: "tl.sqrt({x})",
    -0.5: "(1.0 / tl.sqrt({x}))",
    -1.0: "(1.0 / {x})",
    -2.0: "(1.0 / ({x} * {x}))",
}


def _power(exponent: bool | int | float | None, result: DType) -> str | None:
    if exponent is None:
        return None
    forms = _POWERS | (_WIDE_ROOTS if result is DType.F64 else _ROOTS)
    return forms.get(float(exponent))
