"""Small questions that the raising passes ask of values."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.pointwise import Cast
from fuseline.ir.ops.view import Expand, Reshape, Slice
from fuseline.ir.types import Dim
from fuseline.passes.canonical_casts import is_exact


def only_user(func: Func, value: Value) -> Op | None:
    """The one op that reads a value, however often; None where there is another reader."""
    users = func.users(value)
    return users[0] if len(users) == 1 and not func.is_returned(value) else None


def narrow(value: Value) -> Value:
    """The source of an exact cast between floating types, else the value itself."""
    owner = value.owner
    if not isinstance(owner, Cast) or not owner.x.dtype.is_float:
        return value
    return owner.x if is_exact(owner.x.dtype, owner.dtype) else value


def reshaped(value: Value, shape: tuple[Dim, ...]) -> Value:
    """The value under another shape, by at most one reshape of what it is a reshape of."""
    while value.shape != shape and isinstance(value.owner, Reshape):
        value = value.owner.x
    return value if value.shape == shape else Reshape(value, shape=shape).y


def without_leading_ones(value: Value, rank: int) -> Value:
    """The source of a view that only puts dims of extent 1 before the last ``rank`` ones."""
    owner = value.owner
    while isinstance(owner, (Reshape, Expand)):
        kept = value.shape[len(value.shape) - rank :]
        if owner.x.shape != kept or any(e != 1 for e in value.shape[: len(value.shape) - rank]):
            break
        value, owner = owner.x, owner.x.owner
    return value


def other_operand(op: Op, value: Value) -> Value | None:
    """The other operand of a binary op that reads ``value``; None where it is not read once."""
    lhs, rhs = op.operands
    if lhs is value and rhs is not value:
        return rhs
    return lhs if rhs is value and lhs is not value else None


@dataclass(frozen=True)
class Part:
    """``length`` elements of a value's last dim: from ``start`` on, every ``step``-th."""

    root: Value
    start: int
    length: int
    step: int = 1


def last_dim_part(value: Value) -> Part | None:
    """A value as a part of the last dim of what it is a slice of; None for unknown sizes."""
    extent = value.shape[-1] if value.shape else None
    if not isinstance(extent, int):
        return None
    op = value.owner
    last = len(value.shape) - 1
    if isinstance(op, Slice) and op.axis == last and isinstance(op.start, int):
        return Part(op.x, op.start, extent, op.step)
    return Part(value, 0, extent)
