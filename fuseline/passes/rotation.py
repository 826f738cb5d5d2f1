"""The parts of a rotary embedding: paired elements, sums of products, cosine and sine tables.

A rotation pairs each element of a row with another. Pairs lie side by side (``strided``: 2i with
2i + 1) or half the width apart (``halves``: i with i + width/2), where they are read and where they
are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.pointwise import Add, Mul, Neg, Sub
from fuseline.ir.ops.view import Concat, Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, dim
from fuseline.passes.match import last_dim_part, narrow

Pairing: TypeAlias = Literal["halves", "strided"]


@dataclass(frozen=True)
class Row:
    """The elements that a rotation turns: ``width`` of ``root``'s last dim from ``start`` on."""

    root: Value
    start: int
    width: int
    pairing: Pairing

    def value(self, func: Func) -> Value:
        """The row as a value: the root itself where it is all of it, else a slice that is there."""
        if self.start == 0 and self.width == self.root.shape[-1]:
            return self.root
        axis, stop = self.root.tensor.rank - 1, self.start + self.width
        for user in func.users(self.root):
            if not isinstance(user, Slice) or user.y.shape[-1] != self.width:
                continue
            if (user.axis, user.start, user.step) == (axis, self.start, 1):
                return user.y
        return Slice(self.root, axis=axis, start=self.start, stop=stop).y


def paired(first: Value, second: Value) -> Row | None:
    """The row whose pairs have their first elements in one value, their second in another."""
    a, b = last_dim_part(first), last_dim_part(second)
    if a is None or b is None or a.root is not b.root or a.length != b.length:
        return None
    width = 2 * a.length
    if a.step == b.step == 1 and b.start == a.start + a.length:
        return Row(a.root, a.start, width, "halves")
    if a.step == b.step == 2 and b.start == a.start + 1:
        return Row(a.root, a.start, width, "strided")
    return None


def joined(op: Op | None) -> tuple[Value, Value, Pairing] | None:
    """What an op puts together as the first and the second elements of the pairs of its result."""
    match op:
        case Concat(xs) if len(xs) == 2 and op.axis == op.y.tensor.rank - 1:
            return xs[0], xs[1], "halves"
        case Reshape(x) if isinstance(x.owner, Concat) and len(x.owner.xs) == 2:
            stacked = x.owner
            rank = op.y.tensor.rank
            if stacked.axis != rank or stacked.y.shape[:-2] != op.shape[:-1]:
                return None
            first, second = (_without_last_one(v) for v in stacked.xs)
            if first is None or second is None:
                return None
            return first, second, "strided"
        case _:
            return None


def _without_last_one(value: Value) -> Value | None:
    """The source of a reshape that only adds a last dim of extent 1."""
    op = value.owner
    if not isinstance(op, Reshape) or value.shape != (*op.x.shape, 1):
        return None
    return op.x


@dataclass(frozen=True)
class Turned:
    """A row with each pair (a, b) replaced by (-b, a), or by (b, -a) where ``sign`` is -1."""

    row: Row
    sign: int


def turned(value: Value) -> Turned | None:
    """A value as a turned row; None where it is not one."""
    parts = joined(value.owner)
    if parts is None:
        return None
    first, second, written = parts
    signs = [isinstance(v.owner, Neg) for v in (first, second)]
    bare = [v.owner.x if isinstance(v.owner, Neg) else v for v in (first, second)]
    row = paired(bare[1], bare[0])
    if row is None or row.pairing != written or signs[0] == signs[1]:
        return None
    return Turned(row, 1 if signs[0] else -1)


@dataclass(frozen=True)
class Product:
    """One product of a sum, with its sign."""

    sign: int
    lhs: Value
    rhs: Value

    def other(self, value: Value) -> Value | None:
        """The factor beside ``value``, seen through exact casts; None where it is no factor."""
        if narrow(self.lhs) is value:
            return narrow(self.rhs)
        return narrow(self.lhs) if narrow(self.rhs) is value else None

    @property
    def factors(self) -> tuple[Value, Value]:
        """Both factors, seen through exact casts."""
        return narrow(self.lhs), narrow(self.rhs)


def sum_of_products(value: Value) -> tuple[Product, Product] | None:
    """A value as the sum of two signed products, each rounded to the type of the sum."""
    match value.owner:
        case Add(lhs, rhs):
            signs = (1, 1)
        case Sub(lhs, rhs):
            signs = (1, -1)
        case _:
            return None
    found = [_product(s, v) for s, v in zip(signs, (lhs, rhs), strict=True)]
    first, second = found
    if first is None or second is None or lhs.dtype is not rhs.dtype:
        return None
    return first, second


def _product(sign: int, value: Value) -> Product | None:
    owner = value.owner
    while isinstance(owner, Neg):
        sign, owner = -sign, owner.x.owner
    if not isinstance(owner, Mul):
        return None
    factors: list[Value] = []
    for factor in (owner.lhs, owner.rhs):
        minus = factor.owner
        sign = -sign if isinstance(minus, Neg) else sign
        factors.append(minus.x if isinstance(minus, Neg) else factor)
    return Product(sign, *factors)


# -- tables ---------------------------------------------------------------------------------


def half_table(table: Value, pairing: Pairing) -> Value | None:
    """The table with one column a pair that ``table`` repeats; None where it repeats none.

    Models repeat the angles and then take cosines: these are taken of the angles alone instead.
    """
    op = table.owner
    source = None if op is None else _only_tensor(op)
    if op is not None and source is not None:
        inner = half_table(source, pairing)
        return None if inner is None else op.clone({source: inner}).results[0]
    if isinstance(op, Reshape) and op.x.shape[-1:] == table.shape[-1:]:
        inner = half_table(op.x, pairing)
        if inner is not None:
            return Reshape(inner, shape=(*table.shape[:-1], inner.shape[-1])).y
    if pairing == "halves":
        return _doubled(table)
    match op:
        case Reshape(x) if isinstance(x.owner, Expand):
            source = _without_last_one(x.owner.x)
            twice = source is not None and x.shape == (*source.shape, 2)
            return source if twice and table.shape[:-1] == x.shape[:-2] else None
        case _:
            return None


def first_half(table: Value) -> Value | None:
    """What the first half of a table's columns is made of, where the second repeats it."""
    op = table.owner
    last = table.tensor.rank - 1
    if isinstance(op, Reshape) and op.x.shape[-1:] == table.shape[-1:]:
        inner = first_half(op.x)
        return None if inner is None else Reshape(inner, shape=table.shape).y
    if not isinstance(op, Slice) or (op.axis, op.start, op.step) != (last, 0, 1):
        return None
    return half_table(op.x, "halves") if op.x.shape[last] == dim(2 * table.shape[last]) else None


def _only_tensor(op: Op) -> Value | None:
    """What an element-wise op computes with beside scalars; None where that is more than one."""
    if not op.has(Trait.POINTWISE):
        return None
    tensors = [v for v in op.operands if v.tensor.rank]
    return tensors[0] if len(tensors) == 1 else None


def _doubled(table: Value) -> Value | None:
    """What a concatenation of a value with itself repeats."""
    op = table.owner
    match op:
        case Concat(xs) if len(xs) == 2 and xs[0] is xs[1] and op.axis == op.y.tensor.rank - 1:
            return xs[0]
        case _:
            return None


def broadcasts(table: Value, row: Sequence[Dim], columns: int) -> bool:
    """Whether a table of so many columns broadcasts to a row's shape without widening it."""
    shape = table.shape
    if not shape or shape[-1] != columns or len(shape) > len(row):
        return False
    lead = row[len(row) - len(shape) : -1]
    return all(bool(e in (1, want)) for e, want in zip(shape[:-1], lead, strict=True))


def deinterleaved(value: Value) -> Value | None:
    """The source of ``view(..., width/2, 2).transpose(-1, -2).reshape(..., width)``, else None."""
    match value.owner:
        case Reshape(turned_view) if isinstance(turned_view.owner, Permute):
            permute = turned_view.owner
        case _:
            return None
    split = permute.x.owner
    rank = permute.y.tensor.rank
    if permute.dims != (*range(rank - 2), rank - 1, rank - 2) or not isinstance(split, Reshape):
        return None
    x, lead = split.x, value.shape[:-1]
    if split.shape[:-2] != lead or split.shape[-1] != 2 or x.shape[-1:] != value.shape[-1:]:
        return None
    if x.shape == value.shape:
        return x
    alike = [e for e in x.shape if e != 1] == [e for e in value.shape if e != 1]
    return Reshape(x, shape=value.shape).y if alike else None
