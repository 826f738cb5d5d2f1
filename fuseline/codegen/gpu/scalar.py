"""One element-wise op in Triton, with torch's promotion and rounding points.

Values of f32, bf16 and f16 are computed in float32 and rounded to their own type by every op, as
eager does; f64 in float64; integers in their own type, wrapping; bool as int1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fuseline.codegen.gpu.kernel import TL_TYPES
from fuseline.codegen.scalars import BITS, HALVES, SIGNS, ScalarError, Spelling, Term
from fuseline.ir.core import Op
from fuseline.ir.ops import pointwise as ops
from fuseline.ir.types import DType


def stored(dtype: DType) -> str:
    """Triton's type of an element in memory."""
    return TL_TYPES[dtype.value]


def computed(dtype: DType) -> str:
    """Triton's type of an element inside of a kernel."""
    return "tl.float32" if dtype in HALVES else stored(dtype)


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


def _cast(text: str, dtypes: Sequence[DType]) -> str:
    return _grouped(text) + "".join(f".to({computed(dtype)})" for dtype in dtypes)


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


_DIVISIONS: dict[type[Op], str] = {
    ops.FloorDivide: "fl_floor_div",
    ops.Remainder: "fl_remainder",
}


def _choose(condition: str, a: str, b: str) -> str:
    return f"tl.where({condition}, {a}, {b})"


def _compare(sign: str, a: str, b: str, common: DType) -> str:
    if common is DType.BOOL:
        a, b = (convert(text, common, DType.I32) for text in (a, b))
    return f"({a} {sign} {b})"


def _unary(op: Op, x: str, result: DType) -> str:
    kind = computed(result)
    match op:
        case ops.Neg():
            return f"({x} * -1.0)" if result.is_float else f"(-{x})"
        case ops.Abs():
            unsigned = result in (DType.U8, DType.BOOL)
            return f"tl.abs({x})" if result.is_float else x if unsigned else _distance(x)
        case ops.BitwiseNot():
            if result is DType.U8:
                return f"({x} ^ 255)"  # Triton 3.6 interprets ~ of it as an overflow
            return f"({x} == 0)" if result is DType.BOOL else f"(~{x})"
        case ops.Sign():
            return x if result is DType.BOOL else f"(({x} > 0).to({kind}) - ({x} < 0).to({kind}))"
        case ops.Relu():
            return f"tl.where({x} < 0, {literal(0, result)}, {x})"
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


def _floats(op: Op, a: str, b: str, result: DType, constant: bool | int | float | None) -> str:
    match op:
        case ops.Add() | ops.Sub() | ops.Mul():
            return f"({a} {SIGNS[type(op)]} {b})"
        case ops.Div():
            return f"({a} / {b})" if result is DType.F64 else f"tl.div_rn({a}, {b})"
        case ops.Maximum():
            return f"tl.where(({a} > {b}) | ({a} != {a}), {a}, {b})"
        case ops.Minimum():
            return f"tl.where(({a} < {b}) | ({a} != {a}), {a}, {b})"
        case ops.Pow() if (form := _power(constant, result)) is not None:
            return form.format(x=a)
        case ops.FloorDivide() | ops.Remainder() | ops.Pow() if result is not DType.F64:
            return f"{_DIVISIONS.get(type(op), 'fl_pow')}({a}, {b})"
        case _:
            raise ScalarError(f"{op.name} of {result}; the kernel has none in that precision")


def _integers(op: Op, a: str, b: str, result: DType) -> str:
    kind, wide = computed(result), [f"{_grouped(t)}.to(tl.int64)" for t in (a, b)]
    match op:
        case ops.Add() | ops.Sub() | ops.Mul():
            return f"({a} {SIGNS[type(op)]} {b})"
        case ops.Maximum():
            return f"tl.where({a} > {b}, {a}, {b})"
        case ops.Minimum():
            return f"tl.where({a} < {b}, {a}, {b})"
        case _ if type(op) in BITS:
            return f"({a} {BITS[type(op)]} {b})"
        case ops.FloorDivide() | ops.Remainder():
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


TRITON = Spelling(
    literal=literal,
    computed=computed,
    cast=_cast,
    round_to=round_to,
    choose=_choose,
    compare=_compare,
    unary=_unary,
    floats=_floats,
    integers=_integers,
)
convert = TRITON.convert
expression = TRITON.expression

__all__ = [
    "TRITON",
    "HALVES",
    "ScalarError",
    "Term",
    "computed",
    "convert",
    "expression",
    "functions",
    "literal",
    "round_to",
    "stored",
    "to_store",
    "widened",
]
