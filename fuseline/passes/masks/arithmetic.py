"""Element-wise ops on expressions: integers, conditions and floating-point constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fuseline.ir.core import Op
from fuseline.ir.ops import pointwise
from fuseline.ir.types import Dim, DType
from fuseline.passes.masks.bounds import Bounds, larger, quotient
from fuseline.passes.masks.expressions import (
    Expression,
    Number,
    Opaque,
    as_condition,
    as_integer,
    as_linear,
    lift,
    pick,
)
from fuseline.passes.masks.integers import Linear, of_dim
from fuseline.passes.masks.predicates import (
    Condition,
    all_of,
    any_of,
    at_least_zero,
    is_zero,
    known,
    negate,
)

_COMPARISONS: dict[type[Op], Callable[[Linear, Linear, Bounds], Condition]] = {
    pointwise.Le: lambda a, b, bounds: at_least_zero(b - a, bounds),
    pointwise.Lt: lambda a, b, bounds: at_least_zero((b - a).plus(-1), bounds),
    pointwise.Ge: lambda a, b, bounds: at_least_zero(a - b, bounds),
    pointwise.Gt: lambda a, b, bounds: at_least_zero((a - b).plus(-1), bounds),
    pointwise.Eq: lambda a, b, bounds: is_zero(a - b, bounds),
    pointwise.Ne: lambda a, b, bounds: negate(is_zero(a - b, bounds)),
}
_NUMBERS: dict[type[Op], Callable[[float, float], float]] = {
    pointwise.Add: lambda a, b: a + b,
    pointwise.Sub: lambda a, b: a - b,
    pointwise.Mul: lambda a, b: a * b,
    pointwise.Maximum: max,
    pointwise.Minimum: min,
}
_NUMBER_COMPARISONS: dict[type[Op], Callable[[float, float], bool]] = {
    pointwise.Le: lambda a, b: a <= b,
    pointwise.Lt: lambda a, b: a < b,
    pointwise.Ge: lambda a, b: a >= b,
    pointwise.Gt: lambda a, b: a > b,
    pointwise.Eq: lambda a, b: a == b,
    pointwise.Ne: lambda a, b: a != b,
}


def pointwise_op(op: Op, args: Sequence[Expression], bounds: Bounds) -> Expression:
    """The result of an element-wise op on the elements of its operands.

    Raises:
        Opaque: it is none of the expressions.

    """
    dtypes = [v.dtype for v in op.operands]
    if isinstance(op, pointwise.Cast):
        return convert(args[0], dtypes[0], op.dtype, bounds)
    if isinstance(op, pointwise.Where):
        lhs = convert(args[1], dtypes[1], op.y.dtype, bounds)
        rhs = convert(args[2], dtypes[2], op.y.dtype, bounds)
        return pick(as_condition(args[0], bounds), lhs, rhs)
    logic = isinstance(op, (pointwise.LogicalAnd, pointwise.LogicalOr, pointwise.LogicalNot))
    if logic or all(d is DType.BOOL for d in dtypes):
        return _logic(op, [as_condition(a, bounds) for a in args])
    if any(d.is_float for d in dtypes):
        return lift(lambda *leaves: _numbers(op, leaves), *args)
    return lift(lambda *leaves: _integers(op, leaves, bounds), *map(as_integer, args))


def convert(x: Expression, source: DType, target: DType, bounds: Bounds) -> Expression:
    """An element in another type; integers are not followed into types where they could wrap.

    Raises:
        Opaque: it is none of the expressions.

    """
    if source is target:
        return x
    if target is DType.BOOL:
        return as_condition(x, bounds)
    if target.is_float:

        def rounded(*leaves: Expression) -> Expression:
            return _to_float(leaves[0], source, target)

        return lift(rounded, as_integer(x))
    if source.is_float or target.itemsize < min(source.itemsize, DType.I32.itemsize):
        raise Opaque
    return as_integer(x)


def constant(value: bool | float | Dim, dtype: DType) -> Expression:
    """A constant of an element type, a dim where that is an integer one.

    Raises:
        Opaque: the value is not one of the type.

    """
    if not dtype.is_float:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(whole, float):
            raise Opaque
        return known(bool(whole)) if dtype is DType.BOOL else of_dim(whole)
    if not isinstance(value, (bool, int, float)):
        raise Opaque
    return Number(float(torch.tensor(float(value), dtype=dtype.torch)))


def _logic(op: Op, conditions: Sequence[Condition]) -> Expression:
    match op:
        case pointwise.LogicalNot() | pointwise.BitwiseNot():
            return negate(conditions[0])
        case pointwise.LogicalAnd() | pointwise.BitwiseAnd() | pointwise.Mul():
            return all_of(conditions)
        case pointwise.LogicalOr() | pointwise.BitwiseOr() | pointwise.Add():
            return any_of(conditions)
        case pointwise.Eq():
            return pick(conditions[0], conditions[1], negate(conditions[1]))
        case pointwise.Ne() | pointwise.BitwiseXor():
            return pick(conditions[0], negate(conditions[1]), conditions[1])
        case _:
            raise Opaque


def _integers(op: Op, leaves: Sequence[Expression], bounds: Bounds) -> Expression:
    args = [as_linear(leaf) for leaf in leaves]
    if type(op) in _COMPARISONS:
        return _COMPARISONS[type(op)](args[0], args[1], bounds)
    match op, args:
        case pointwise.Add(), [lhs, rhs]:
            return lhs + rhs
        case pointwise.Sub(), [lhs, rhs]:
            return lhs - rhs
        case pointwise.Mul(), [lhs, Linear(factor, terms)] if not terms:
            return lhs.times(factor)
        case pointwise.Mul(), [Linear(factor, terms), rhs] if not terms:
            return rhs.times(factor)
        case pointwise.Neg(), [x]:
            return -x
        case pointwise.Abs(), [x]:
            return larger(x, -x, bounds)
        case pointwise.Maximum(), [lhs, rhs]:
            return larger(lhs, rhs, bounds)
        case pointwise.Minimum(), [lhs, rhs]:
            return -larger(-lhs, -rhs, bounds)
        case pointwise.FloorDivide(), [lhs, Linear(by, terms)] if not terms and by > 0:
            return quotient(lhs, by, bounds)
        case pointwise.Remainder(), [lhs, Linear(by, terms)] if not terms and by > 0:
            return lhs - quotient(lhs, by, bounds).times(by)
        case _:
            raise Opaque


def _numbers(op: Op, leaves: Sequence[Expression]) -> Expression:
    numbers = [leaf.value for leaf in leaves if isinstance(leaf, Number)]
    if len(numbers) < len(leaves):
        raise Opaque
    if type(op) in _NUMBER_COMPARISONS:
        return known(_NUMBER_COMPARISONS[type(op)](numbers[0], numbers[1]))
    if type(op) in _NUMBERS:
        return constant(_NUMBERS[type(op)](numbers[0], numbers[1]), op.results[0].dtype)
    if isinstance(op, pointwise.Neg):
        return Number(-numbers[0])
    raise Opaque


def _to_float(leaf: Expression, source: DType, target: DType) -> Expression:
    match leaf:
        case Linear(const, terms) if not terms:
            return constant(const, target)
        case Number(value):
            exact = torch.tensor(value, dtype=source.torch).to(target.torch)
            return Number(float(exact))
        case _:
            raise Opaque


def number_of(expr: Expression) -> float | None:
    """The constant that an element is."""
    if isinstance(expr, Number):
        return expr.value
    return float(expr.const) if isinstance(expr, Linear) and expr.is_const else None
