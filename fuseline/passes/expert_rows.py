"""The rows that routed experts work on: one for each slot, in slot order or sorted by expert.

A token has K slots, one for each of its experts; there are ``S = T * K`` of them. Models write the
products over slots in one of two orders: as the router gave them, or sorted by expert. Rows are
told by what they hold in row-major order, so reshapes are looked through.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.index import Index, IndexCopy, IndexPut, IndexSelect, Scatter
from fuseline.ir.ops.pointwise import Cast, FloorDivide
from fuseline.ir.ops.reduce import Sort
from fuseline.ir.ops.view import Expand, Reshape
from fuseline.ir.types import Dim, DType, dim, product, same

COUNTING = (DType.I64, DType.I32, DType.F64, DType.F32)
"""The types that count every row of a call: float32 up to 2**24, bfloat16 only up to 256."""


@dataclass(frozen=True)
class Slots:
    """The expert of each slot, and the order that rows stand in.

    Attributes:
        ids: the experts in slot order, S of them.
        order: the sort of ``ids`` whose order the rows have; None where they are in slot order.
    """

    ids: Value
    order: Sort | None = None

    @property
    def count(self) -> Dim:
        """How many slots there are."""
        return self.ids.tensor.numel

    @property
    def in_slot_order(self) -> Slots:
        """The same slots, with rows in slot order."""
        return Slots(self.ids)

    def are_ids(self, value: Value) -> bool:
        """Whether a value holds the expert of each row."""
        value = uncast(value)
        if self.order is None:
            return value is self.ids
        return value is self.order.values or _picked(value, self.order.indices) is self.ids


def slots_of(ids: Value) -> Slots:
    """The slots whose rows have these experts."""
    ids = uncast(ids)
    owner = ids.owner
    if isinstance(owner, Sort) and ids is owner.values and owner.x.tensor.rank == 1:
        return sorted_slots(owner)
    picked = row_source(ids)
    if picked is not None and isinstance(picked[1].owner, Sort):
        slots = sorted_slots(picked[1].owner)
        if slots.are_ids(ids):
            return slots
    return Slots(ids)


def sorted_slots(sort: Sort) -> Slots:
    """The slots that a sort of all of them, in one row, brings into another order."""
    return Slots(uncast(sort.x), sort)


def uncast(value: Value) -> Value:
    """What whole numbers were before casts that keep all of them, and reshapes."""
    while isinstance(value.owner, (Cast, Reshape)) and value.dtype in COUNTING:
        value = value.owner.x
    return value


def unshaped(value: Value) -> Value:
    """What a value was before it was reshaped."""
    return value.owner.x if isinstance(value.owner, Reshape) else value


def unexpanded(value: Value) -> Value:
    """What a value was before it was repeated."""
    return value.owner.x if isinstance(value.owner, Expand) else value


def uncast_once(value: Value) -> Value:
    """What a value was before a cast."""
    return value.owner.x if isinstance(value.owner, Cast) else value


def row_source(value: Value) -> tuple[Value, Value] | None:
    """What rows are picked of, and by which 1-d index."""
    match unshaped(value).owner:
        case Index(x, (index,), axes=(0,)) if index.tensor.rank == 1:
            return x, uncast(index)
        case IndexSelect(x, index, axis=0) if index.tensor.rank == 1:
            return x, uncast(index)
        case _:
            return None


def _picked(value: Value, index: Value) -> Value | None:
    """What a value is ``[index]`` of, whole numbers without their casts."""
    source = row_source(value)
    if source is None or source[1] is not index:
        return None
    return source[0] if source[0].dtype.is_float else uncast(source[0])


# -- what a row is a copy of ------------------------------------------------------------------


def slot_rows(value: Value, slots: Slots) -> Value | None:
    """The value in slot order whose rows, in the order of ``slots``, are these."""
    return value if slots.order is None else _picked(value, slots.order.indices)


def token_rows(value: Value, slots: Slots, k: Dim) -> Value | None:
    """The value, T rows of it, whose rows stand here once for each slot of their token."""
    if slots.order is None:
        source = row_source(value)
        if source is not None and are_tokens(source[1], slots, k):
            return source[0]
        return unshaped(value) if same(k, 1) else _repeated(value, slots.count, k)
    source = row_source(value)
    if source is None:
        return None
    if source[1] is slots.order.indices:
        return token_rows(source[0], slots.in_slot_order, k)
    return source[0] if are_tokens(source[1], slots, k) else None


def are_tokens(value: Value, slots: Slots, k: Dim) -> bool:
    """Whether a value holds the token of each row."""
    value = uncast(value)
    match value.owner:
        case FloorDivide(lhs, rhs) if isinstance(rhs.owner, Full):
            return same(dim(rhs.owner.value), k) and _are_slots(uncast(lhs), slots)
        case _ if same(k, 1) and _are_slots(value, slots):
            return True
        case _:
            pass
    if slots.order is not None:
        spread = _picked(value, slots.order.indices)
        return spread is not None and are_tokens(spread, slots.in_slot_order, k)
    source = _repeated(value, slots.count, k)
    return source is not None and is_running(uncast(source))


def _are_slots(value: Value, slots: Slots) -> bool:
    return is_running(value) if slots.order is None else value is slots.order.indices


def is_running(value: Value) -> bool:
    """Whether a value is 0, 1, 2 ..., in a type that has all of them."""
    op = value.owner
    return isinstance(op, Iota) and (op.start, op.step) == (0, 1) and value.dtype in COUNTING


def _repeated(value: Value, count: Dim, k: Dim) -> Value | None:
    """The value each of whose T rows comes K times in a row in ``value``, S rows."""
    wide = unshaped(value).owner
    if not isinstance(wide, Expand):
        return None
    given = (1,) * (len(wide.shape) - len(wide.x.shape)) + wide.x.shape
    grown = [i for i, (a, b) in enumerate(zip(given, wide.shape, strict=True)) if not same(a, b)]
    if len(grown) != 1 or not same(wide.shape[grown[0]], k):
        return None
    tokens = product(wide.shape[: grown[0]])
    return unshaped(wide.x) if same(dim(tokens * k), count) else None


# -- the way back -----------------------------------------------------------------------------


def restores(index: Value, slots: Slots) -> bool:
    """Whether picking by an index brings rows back into slot order."""
    order = slots.order
    if order is None:
        return False
    index = uncast(index)
    match index.owner:
        case IndexPut(x, (place,), src, axes=(0,), accumulate=False):
            return _inverts(x, place, src, order)
        case Scatter(x, place, src, axis=0):
            return _inverts(x, place, src, order)
        case Sort(x, descending=False) as again:
            return index is again.indices and uncast(x) is order.indices
        case _:
            return False


def puts_back(op: Op, rows: Value, slots: Slots) -> bool:
    """Whether an op assigns rows to their slots, all of which it fills."""
    match op:
        case IndexCopy(x, place, src, axis=0):
            pass
        case IndexPut(x, (place,), src, axes=(0,), accumulate=False):
            pass
        case Scatter(x, index, src, axis=0) if isinstance(index.owner, Expand):
            place = index.owner.x  # the same place for all columns
            if place.shape != (index.shape[0], 1) or index.shape != src.shape:
                return False
        case _:
            return False
    order = slots.order
    fills = src is rows and (x.shape, x.dtype) == (src.shape, src.dtype)
    return fills and order is not None and uncast(place) is order.indices


def _inverts(x: Value, place: Value, src: Value, order: Sort) -> bool:
    whole = x.shape == place.shape and src.shape == place.shape
    return whole and uncast(place) is order.indices and is_running(uncast(src))


def as_matrix(value: Value, width: Dim) -> Value:
    """A value of rows as ``[rows, width]``."""
    value = unshaped(value)
    rows = product(value.shape[:-1]) if value.shape[-1:] == (width,) else None
    if rows is None:
        rows = dim(value.tensor.numel / width)
    shape = (rows, width)
    return value if value.shape == shape else Reshape(value, shape=shape).y


def as_grid(value: Value, tokens: Dim, k: Dim, dtype: DType | None = None) -> Value:
    """A value of S elements as ``[T, K]``, cast to a type."""
    value, shape = unshaped(value), (tokens, k)
    value = value if dtype in (None, value.dtype) else Cast(value, dtype=dtype).y
    return value if value.shape == shape else Reshape(value, shape=shape).y
