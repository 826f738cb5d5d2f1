"""Constants folded: arithmetic and views of `full`, affine arithmetic of `iota`, absorbing masks,
comparisons of indices with the number of things that they choose among.

Only what is spelled in the graph folds. A table held in a parameter or a buffer can change between
calls, so nothing is computed from it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.evaluate import call_reference
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.pointwise import Add, Cast, LogicalAnd, LogicalOr, Mul, Sub, Where
from fuseline.ir.ops.view import Concat, Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, DType, TensorType, dim
from fuseline.passes import index_ranges
from fuseline.passes.constants import Number, is_scalar, number, uniform
from fuseline.passes.rewrite import FuncPass
from fuseline.passes.sweep import Rules, sweep

RULES = Rules()
RULES.include(index_ranges.RULES)


@dataclass(frozen=True)
class FoldConstants(FuncPass):
    """Compute at compile time what depends on nothing but attributes.

    Before:
        func @f(%x: bool[S, S]) {
          %one = full {value = 1, dtype = i64}
          %two = full {value = 2, dtype = i64}
          %three = add %one, %two
          %i = iota {length = S}
          %j = add %i, %three
          %true = full {value = true, dtype = bool}
          %m = logical_and %true, %x
          return %j, %m
        }
    After:
        func @f(%x: bool[S, S]) {
          %one = full {value = 1, dtype = i64}
          %two = full {value = 2, dtype = i64}
          %three = full {value = 3, dtype = i64}
          %i = iota {length = S}
          %j = iota {length = S, start = 3}
          %true = full {value = true, dtype = bool}
          return %j, %x
        }
    """

    def run(self, func: Func) -> None:
        sweep(func, RULES)


def _full(value: Number | Dim, like: TensorType) -> Value:
    return Full(value=value, shape=like.shape, dtype=like.dtype).y


@RULES.rule(Reshape, Permute, Expand, Slice)
def fold_view_of_full(op: Reshape | Permute | Expand | Slice) -> Value | None:
    """Every view of a uniform tensor is uniform."""
    value = uniform(op.x)
    return None if value is None else _full(value, op.y.tensor)


@RULES.rule(Concat)
def fold_concat_of_full(op: Concat) -> Value | None:
    """Equal uniform tensors behind one another are one."""
    values = [number(x) for x in op.xs]
    same = all(repr(v) == repr(values[0]) for v in values)
    same = same and all(x.dtype is op.y.dtype for x in op.xs)
    return _full(values[0], op.y.tensor) if values[0] is not None and same else None


@RULES.rule(Op)
def fold_pointwise_of_full(op: Op) -> Value | None:
    """Element-wise ops of uniform tensors are uniform; computed by the op's own reference."""
    if not op.has(Trait.POINTWISE) or len(op.results) != 1 or not op.operands:
        return None
    values = [number(v) for v in op.operands]
    if any(v is None for v in values):
        return _fold_dims(op)
    tensors = {
        v: torch.full((1,) if v.shape else (), value, dtype=v.dtype.torch)
        for v, value in zip(op.operands, values, strict=True)
        if value is not None
    }
    try:
        (out,) = call_reference(op, tensors, {})
    except (RuntimeError, ZeroDivisionError):
        return None  # not defined there: it fails when it runs, as it does in torch
    return _full(out.item(), op.results[0].tensor)


_DIM_ARITHMETIC: dict[type[Op], Callable[[Any, Any], Any]] = {
    Add: lambda a, b: a + b,
    Sub: lambda a, b: a - b,
    Mul: lambda a, b: a * b,
}


def _fold_dims(op: Op) -> Value | None:
    """Integer arithmetic on run-time sizes stays a size."""
    if op.results[0].dtype is not DType.I64:
        return None
    values = [v for v in map(uniform, op.operands) if isinstance(v, (int, sympy.Expr))]
    if len(values) != len(op.operands):
        return None
    combine = _DIM_ARITHMETIC.get(type(op))
    return None if combine is None else _full(dim(combine(*values)), op.results[0].tensor)


@RULES.rule(Add, Sub, Mul)
def fold_affine_of_iota(op: Add | Sub | Mul) -> Value | None:
    """``iota + c``, ``iota - c`` and ``iota * c`` of integers are an iota."""
    source, by = op.lhs.owner, _integer(op.rhs)
    if by is None and not isinstance(op, Sub):
        source, by = op.rhs.owner, _integer(op.lhs)
    if by is None or not isinstance(source, Iota) or source.dtype is not op.y.dtype:
        return None
    if source.dtype.is_float:
        return None
    start, step = source.start, source.step
    match op:
        case Add():
            start = start + by
        case Sub():
            start = start - by
        case Mul():
            start, step = start * by, step * by
    return Iota(length=source.length, start=_exact(start), step=_exact(step), dtype=source.dtype).y


def _exact(value: Any) -> float | Dim:
    return value if isinstance(value, (int, float)) else dim(value)


def _integer(value: Value) -> int | sympy.Expr | None:
    found = uniform(value) if is_scalar(value) else None
    if isinstance(found, bool) or not isinstance(found, (int, sympy.Expr)):
        return None
    return found


@RULES.rule(Slice)
def fold_slice_of_iota(op: Slice) -> Value | None:
    """A slice of an iota is an iota that starts later."""
    source = op.x.owner
    if not isinstance(source, Iota) or source.dtype.is_float:
        return None
    start = _exact(source.start + source.step * op.start)
    step = _exact(source.step * op.step)
    return Iota(length=op.y.shape[0], start=start, step=step, dtype=source.dtype).y


@RULES.rule(Cast)
def fold_cast_of_iota(op: Cast) -> Value | None:
    """An i64 iota of small known extent, cast to another integer type, is an iota of that type."""
    source = op.x.owner
    if not isinstance(source, Iota) or source.dtype.is_float or op.dtype.is_float:
        return None
    ends = (source.start, source.start + source.step * source.length)
    if op.dtype is DType.BOOL or not all(isinstance(e, int) for e in ends):
        return None
    limits = torch.iinfo(op.dtype.torch)
    if not all(limits.min <= int(e) <= limits.max for e in ends):
        return None
    return Iota(length=source.length, start=source.start, step=source.step, dtype=op.dtype).y


@RULES.rule(LogicalAnd, LogicalOr)
def fold_absorbed_logic(op: LogicalAnd | LogicalOr) -> Value | None:
    """``true and x`` is x, ``false and x`` false; the reverse for ``or``."""
    neutral = isinstance(op, LogicalAnd)
    for constant, other in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
        value = number(constant)
        if value is None or other.dtype is not DType.BOOL:
            continue
        if bool(value) is not neutral:
            return _full(not neutral, op.y.tensor)
        return Expand(other, shape=op.y.shape).y if other.shape != op.y.shape else other
    return None


@RULES.rule(Where)
def fold_known_choice(op: Where) -> Value | None:
    """A choice whose condition is known is one of its sides."""
    condition = number(op.condition)
    if condition is None:
        return None
    side = op.lhs if condition else op.rhs
    side = side if side.dtype is op.y.dtype else Cast(side, dtype=op.y.dtype).y
    return side if side.shape == op.y.shape else Expand(side, shape=op.y.shape).y
