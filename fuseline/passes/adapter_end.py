"""What becomes of the adapters' second product: scales, masks, and the sum with the base result."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.pointwise import Add, Cast, LogicalNot, Mul, Where
from fuseline.ir.types import Dim, DType
from fuseline.passes.adapter_rows import PerRow, factor_of, keeps_order
from fuseline.passes.constants import number
from fuseline.passes.expert_rows import unexpanded
from fuseline.passes.match import only_user, other_operand


@dataclass(frozen=True)
class End:
    """The value that the adapters' op can give, and what it has to do for it.

    Attributes:
        y: that value.
        delta: the type of what is added to the base result.
        scale: a number that the product is multiplied by.
        factor: of each row, that it is multiplied by then.
        keep: whether a row has an adapter at all; those that have none get 0.
        negated: whether ``keep`` says the contrary.
        base: what is added last, of the same shape as y.
        cast: whether a cast was met: nothing is multiplied behind it.
    """

    y: Value
    delta: DType
    scale: float = 1.0
    factor: PerRow | None = None
    keep: PerRow | None = None
    negated: bool = False
    base: Value | None = None
    cast: bool = False


def scaled(rows: Value, by: Value, width: Dim, end: End, *, earlier: bool = False) -> End | None:
    """``rows * by`` as a further scale, factor or mask; None where it is none of them.

    The op multiplies by the scale first. ``earlier``: what is found comes before what was found.
    """
    known = number(by)
    if known is not None and not by.shape:
        late = end.factor is not None and not earlier
        if end.scale != 1.0 or (late and not _is_exact(float(known))):
            return None
        return replace(end, scale=float(known))
    factor = factor_of(by, rows, width)
    if factor is None or not by.dtype.is_float:
        return None
    made = factor.value.owner
    if isinstance(made, Cast) and made.x.dtype is DType.BOOL and end.keep is None:
        return replace(end, keep=replace(factor, value=made.x))
    late = end.scale != 1.0 and earlier
    if end.factor is not None or (late and not _is_exact(end.scale)):
        return None
    return replace(end, factor=factor)


def _is_exact(value: float) -> bool:
    """Whether a number is a power of two: products with it do not round."""
    mantissa = value.hex().split("p")[0]
    return mantissa in ("0x1.0000000000000", "-0x1.0000000000000")


def follow(func: Func, end: End, width: Dim) -> End:
    """As many of the ops behind a product as the adapters' op can do."""
    found = end
    while True:
        following = _next(func, end, width)
        if following is None:
            return found
        end = following
        if not keeps_order_only(end):
            found = end
        if end.base is not None:
            return _narrowed(func, end)


def keeps_order_only(end: End) -> bool:
    """Whether the last op of an end is a view: one that nothing of ours follows stays."""
    return end.y.owner is not None and keeps_order(end.y.owner)


def _next(func: Func, end: End, width: Dim) -> End | None:
    """One op further."""
    value, op = end.y, only_user(func, end.y)
    if op is None:
        return None
    if keeps_order(op):
        return replace(end, y=op.results[0])
    match op:
        case Mul() if op.y.shape == value.shape and not end.cast:
            by = other_operand(op, value)
            found = None if by is None else scaled(value, by, width, end)
            return None if found is None else replace(found, y=op.y, delta=op.y.dtype)
        case Cast() if op.dtype.is_float and not end.cast:
            return replace(end, y=op.y, delta=op.dtype, cast=True)
        case Where(cond, x, other) if op.y.shape == value.shape and end.keep is None:
            filler = other if x is value else x
            if cond is value or x is other or number(unexpanded(filler)) != 0:
                return None
            keep = factor_of(cond, value, width)
            if keep is None or op.y.dtype is not value.dtype:
                return None
            return _masked(replace(end, y=op.y), keep, inverted=other is value)
        case Add() if (base := other_operand(op, value)) is not None:
            fits = base.shape == value.shape and base.dtype.is_float
            return replace(end, y=op.y, base=base) if fits else None
        case _:
            return None


def _masked(end: End, keep: PerRow, *, inverted: bool) -> End:
    owner = keep.value.owner
    if isinstance(owner, LogicalNot):
        return _masked(end, replace(keep, value=owner.x), inverted=not inverted)
    return replace(end, keep=keep, negated=inverted)


def _narrowed(func: Func, end: End) -> End:
    """With the cast of the sum, where that is all that reads it."""
    op = only_user(func, end.y)
    return replace(end, y=op.y) if isinstance(op, Cast) and op.dtype.is_float else end


__all__ = ["End", "follow", "scaled"]
