"""Arithmetic in one spelling, where the other one gives the same bits."""

from __future__ import annotations

from fuseline.ir.core import Value
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.ops.pointwise import (
    Abs,
    Add,
    Binary,
    BitwiseAnd,
    BitwiseNot,
    BitwiseOr,
    BitwiseXor,
    Div,
    Eq,
    Ge,
    Gt,
    Le,
    LogicalAnd,
    LogicalNot,
    LogicalOr,
    Lt,
    Maximum,
    Minimum,
    Mul,
    Ne,
    Neg,
    Pow,
    Reciprocal,
    Rsqrt,
    Sqrt,
    Sub,
    Where,
)
from fuseline.ir.ops.view import Permute, Reshape
from fuseline.ir.types import DType
from fuseline.passes.constants import is_number, is_scalar, number
from fuseline.passes.sweep import Rules

RULES = Rules()

_COMMUTE = (
    Add,
    Mul,
    Maximum,
    Minimum,
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    Eq,
    Ne,
    LogicalAnd,
    LogicalOr,
)
_MIRRORED: dict[type[Binary], type[Binary]] = {Lt: Gt, Gt: Lt, Le: Ge, Ge: Le}


@RULES.rule(*_COMMUTE, *_MIRRORED)
def put_scalar_on_the_right(op: Binary) -> Value | None:
    """``2 * x`` is ``x * 2``, ``0 < x`` is ``x > 0``."""
    if not is_scalar(op.lhs) or is_scalar(op.rhs):
        return None
    return _MIRRORED.get(type(op), type(op))(op.rhs, op.lhs).y


@RULES.rule(Mul, Div)
def drop_multiplication_by_one(op: Mul | Div) -> Value | None:
    """``x * 1`` and ``x / 1`` are x, where type and shape stay; the 1 may be a whole tensor."""
    if is_number(op.rhs, 1):
        return op.lhs
    return op.rhs if isinstance(op, Mul) and is_number(op.lhs, 1) else None


@RULES.rule(Add)
def drop_addition_of_zero(op: Add) -> Value | None:
    """``x + 0`` is x for integers; for floats only ``x + -0.0`` is, as ``-0.0 + 0.0`` is 0.0.

    The zero may have dims of 1 that x lacks: a decode step adds ``arange(1)`` to its position.
    """
    zero = 0 if not op.y.dtype.is_float else -0.0
    for value, other in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
        if is_number(other, zero):
            lacks = value.shape != op.y.shape and op.y.shape == (1,) * op.y.tensor.rank
            return Reshape(value, shape=op.y.shape).y if lacks else value
    return None


@RULES.rule(Iota)
def spell_one_step(op: Iota) -> Value | None:
    """The single element of an integer ``arange(1)`` is a constant."""
    if op.length != 1 or op.dtype.is_float or isinstance(op.start, float):
        return None
    return Full(value=op.start, shape=(1,), dtype=op.dtype).y


@RULES.rule(Sub)
def drop_subtraction_of_zero(op: Sub) -> Value | None:
    """``x - 0`` is x."""
    return op.lhs if is_number(op.rhs, 0) else None


@RULES.rule(Mul)
def spell_negation(op: Mul) -> Value | None:
    """``x * -1`` is ``-x``."""
    return Neg(op.lhs).y if is_number(op.rhs, -1) and op.lhs.type == op.y.type else None


@RULES.rule(Neg)
def drop_double_negation(op: Neg) -> Value | None:
    """``-(-x)`` is x."""
    return op.x.owner.x if isinstance(op.x.owner, Neg) else None


@RULES.rule(Abs)
def drop_sign_under_abs(op: Abs) -> Value | None:
    """``|-x|`` is ``|x|``."""
    inner = _negated(op.x, op.y)
    return None if inner is None else Abs(inner).y


@RULES.rule(Add)
def spell_subtraction(op: Add) -> Value | None:
    """``x + -y`` and ``-y + x`` are ``x - y``."""
    for value, other in ((op.rhs, op.lhs), (op.lhs, op.rhs)):
        if (inner := _negated(value, op.y)) is not None:
            return Sub(other, inner).y
    return None


@RULES.rule(Sub)
def spell_addition(op: Sub) -> Value | None:
    """``x - -y`` is ``x + y``."""
    inner = _negated(op.rhs, op.y)
    return None if inner is None else Add(op.lhs, inner).y


def _negated(value: Value, result: Value) -> Value | None:
    """What a value is the negation of, where a result may take that in: a negative of an unsigned
    number, or of a narrow one in a wider sum, wraps around first.
    """
    if not isinstance(value.owner, Neg) or value.dtype is DType.U8:
        return None
    wraps = not value.dtype.is_float and value.dtype is not result.dtype
    return None if wraps else value.owner.x


@RULES.rule(Pow)
def spell_small_powers(op: Pow) -> Value | None:
    """Powers that torch computes by a product or a root, in the types where it does so exactly."""
    power = number(op.rhs) if is_scalar(op.rhs) else None
    if power is None or op.lhs.type != op.y.type:
        return None
    if power == 1:
        return op.lhs
    if power == 2:
        return Mul(op.lhs, op.lhs).y
    if op.y.dtype not in (DType.F64, DType.F32, DType.BF16):
        return None
    spellings = {0.5: Sqrt, -0.5: Rsqrt, -1.0: Reciprocal}
    return spellings[power](op.lhs).y if power in spellings else None


@RULES.rule(Matmul)
def spell_linear(op: Matmul) -> Value | None:
    """``x @ w.T`` is a linear, where w has two dims and more than one element is summed."""
    right = op.rhs.owner
    if not isinstance(right, Permute) or right.dims != (1, 0):
        return None
    width = right.x.shape[1]
    return Linear(op.lhs, right.x, None).y if op.lhs.shape[-1] == width != 1 else None


@RULES.rule(Where)
def drop_choice_of_equals(op: Where) -> Value | None:
    """A choice between x and x is x."""
    return op.lhs if op.lhs is op.rhs else None


@RULES.rule(BitwiseAnd, BitwiseOr)
def spell_logic_on_bools(op: BitwiseAnd | BitwiseOr) -> Value | None:
    """``&`` and ``|`` of bools are logical."""
    if op.lhs.dtype is not DType.BOOL or op.rhs.dtype is not DType.BOOL:
        return None
    logical = LogicalAnd if isinstance(op, BitwiseAnd) else LogicalOr
    return logical(op.lhs, op.rhs).y


@RULES.rule(BitwiseNot)
def spell_negation_of_bools(op: BitwiseNot) -> Value | None:
    """``~x`` of a bool is logical."""
    return LogicalNot(op.x).y if op.x.dtype is DType.BOOL else None


@RULES.rule(LogicalNot)
def drop_double_not(op: LogicalNot) -> Value | None:
    """``not not x`` is x, where x is a bool; the negation of a comparison is its opposite."""
    inner = op.x.owner
    if isinstance(inner, LogicalNot) and inner.x.dtype is DType.BOOL:
        return inner.x
    return None
