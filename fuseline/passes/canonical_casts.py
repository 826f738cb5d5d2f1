"""Casts in one form: none that changes nothing, none behind an exact one, none left implicit."""

from __future__ import annotations

from fuseline.ir.core import Value
from fuseline.ir.ops.pointwise import Add, Binary, Cast, Div, Maximum, Minimum, Mul, Sub
from fuseline.ir.types import DType
from fuseline.passes.sweep import Rules

RULES = Rules()

# Bits of a float's significand, and of an integer's magnitude; exponent ranges of floats.
_DIGITS = {
    DType.F64: 53,
    DType.F32: 24,
    DType.F16: 11,
    DType.BF16: 8,
    DType.I64: 63,
    DType.I32: 31,
    DType.I16: 15,
    DType.I8: 7,
    DType.U8: 8,
    DType.BOOL: 1,
}
_EXPONENTS = {DType.F64: 1023, DType.F32: 127, DType.BF16: 127, DType.F16: 15}


def is_exact(source: DType, target: DType) -> bool:
    """Whether every value of one element type is a value of another."""
    if source is target:
        return True
    if target is DType.BOOL or (source.is_float and not target.is_float):
        return False
    if _DIGITS[source] > _DIGITS[target]:
        return False
    if source.is_float:
        return _EXPONENTS[source] <= _EXPONENTS[target]
    if not target.is_float and target is DType.U8:
        return source is DType.BOOL
    return not target.is_float or _DIGITS[source] <= _EXPONENTS[target]


@RULES.rule(Cast)
def drop_cast_to_same(op: Cast) -> Value | None:
    """``cast x`` to x's own type is x."""
    return op.x if op.x.dtype is op.dtype else None


@RULES.rule(Cast)
def join_casts(op: Cast) -> Value | None:
    """A cast of an exact cast casts the source."""
    inner = op.x.owner
    if not isinstance(inner, Cast) or not is_exact(inner.x.dtype, inner.dtype):
        return None
    return Cast(inner.x, dtype=op.dtype).y


@RULES.rule(Add, Sub, Mul, Div, Maximum, Minimum)
def make_promotion_explicit(op: Binary) -> Value | None:
    """Operands that torch would promote to a floating result type are cast to it.

    A 0-d operand promotes nobody and is not rounded by torch before the operation: it stays.
    """
    wide = op.y.dtype
    sides = (op.lhs, op.rhs)
    if not wide.is_float or not any(v.shape and v.dtype is not wide for v in sides):
        return None
    lhs, rhs = (Cast(v, dtype=wide).y if v.shape and v.dtype is not wide else v for v in sides)
    return type(op)(lhs, rhs).y
