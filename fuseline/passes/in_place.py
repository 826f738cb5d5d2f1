"""Functional updates of a tensor, and the writes in place that do the same to a buffer."""

from __future__ import annotations

from typing import TypeAlias

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.buffer import IndexWrite, ShiftWrite, SliceWrite
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.index import IndexCopy, IndexPut, Scatter, SliceScatter
from fuseline.ir.ops.pointwise import Add, Remainder
from fuseline.ir.ops.view import Concat, Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, DType, broadcast, product
from fuseline.passes.constants import number
from fuseline.passes.rewrite import NoMatch

Update: TypeAlias = "IndexCopy | SliceScatter | IndexPut | Scatter | Concat"


def as_update(op: Op | None) -> Update | None:
    """The op, where it gives another value with a part replaced, or moved on by some slices."""
    if isinstance(op, Concat):
        return op if _dropped(op) is not None else None
    return op if isinstance(op, (IndexCopy, SliceScatter, IndexPut, Scatter)) else None


def _dropped(op: Concat) -> Slice | None:
    """The slice in front of a concatenation, where it lacks as many as are put behind it."""
    if len(op.xs) != 2 or not isinstance(op.xs[0].owner, Slice):
        return None
    rest = op.xs[0].owner
    same = (rest.axis, rest.step, rest.stop) == (op.axis, 1, rest.x.shape[op.axis])
    return rest if same and rest.start == op.xs[1].shape[op.axis] else None


def updated(update: Update) -> Value:
    """What an update gives another form of."""
    if not isinstance(update, Concat):
        return update.x
    rest = _dropped(update)
    assert rest is not None, "other concatenations are no updates"
    return rest.x


def in_place(buffer: Value, update: Update) -> IndexWrite | SliceWrite | ShiftWrite | NoMatch:
    """The write that does to a buffer what ``update`` does to its operand, or why there is none."""
    src = update.xs[1] if isinstance(update, Concat) else update.src
    if src.dtype is not buffer.dtype:
        return NoMatch(f"{update.name} puts {src.dtype} into {buffer.type}")
    match update:
        case Concat():
            return ShiftWrite(buffer, src, axis=update.axis)
        case IndexCopy():
            return IndexWrite(buffer, update.index, update.src, axis=update.axis)
        case SliceScatter():
            return _slice_write(buffer, update)
        case IndexPut():
            return _index_put(buffer, update)
        case Scatter():
            return _scatter(buffer, update)


def _slice_write(buffer: Value, update: SliceScatter) -> SliceWrite | NoMatch:
    if update.step != 1:
        return NoMatch(f"slice_scatter with a step of {update.step}")
    return SliceWrite(buffer, update.src, axis=update.axis, start=update.start, stop=update.stop)


def _scatter(buffer: Value, update: Scatter) -> IndexWrite | NoMatch:
    """A scatter by an index that varies along its axis alone, over the whole of the other dims."""
    index, axis = update.index, update.axis
    shape = list(index.shape)
    shape[axis] = buffer.shape[axis]
    if tuple(shape) != buffer.shape:
        return NoMatch(f"scatter by {index.type} leaves out parts of {buffer.type}")
    row = index.owner.x if isinstance(index.owner, Expand) else index
    lead = len(index.shape) - len(row.shape)
    if any(e != 1 for a, e in enumerate(row.shape) if a + lead != axis):
        return NoMatch("scatter by an index that varies along more than its axis")
    src = update.src if update.src.shape == index.shape else Expand(update.src, shape=index.shape).y
    return IndexWrite(buffer, _flat(row), src, axis=axis)


def _flat(index: Value) -> Value:
    """An index with one dim that matters as a 1-d one."""
    length = product(index.shape)
    return index if index.shape == (length,) else Reshape(index, shape=(length,)).y


def _index_put(buffer: Value, update: IndexPut) -> IndexWrite | NoMatch:
    """An assignment by index along one axis; further axes may be indexed by whole ranges."""
    if update.accumulate:
        return NoMatch("index_put adds to what is there")
    every = broadcast([i.shape for i in update.indices])
    ranges: dict[int, int] = {}  # position among the dims of the index: the axis that it runs over
    free: list[tuple[int, Value]] = []
    for axis, index in zip(update.axes, update.indices, strict=True):
        position = _range_position(index, buffer.shape[axis], len(every))
        if position is None:
            free.append((axis, index))
        elif position in ranges:
            return NoMatch("index_put by ranges that run together")
        else:
            ranges[position] = axis
    if len(free) != 1:
        return NoMatch(f"index_put by {len(free)} indices that are not whole ranges")
    axis, index = free[0]
    rest = [p for p in range(len(every)) if p not in ranges and every[p] != 1]
    lead = len(every) - len(index.shape)
    own = [p + lead for p, e in enumerate(index.shape) if e != 1]
    if own != rest or len(rest) > 1:
        return NoMatch(f"index_put by an index {index.type} of more than one dim that matters")
    src = _by_axis(buffer, update, every, ranges, axis)
    return IndexWrite(buffer, _wrapped(_flat(index), buffer.shape[axis]), src, axis=axis)


def _range_position(index: Value, extent: Dim, rank: int) -> int | None:
    """Which dim of the broadcast index runs over a whole axis, where ``index`` is such a range."""
    source = index.owner.x if isinstance(index.owner, Reshape) else index
    iota = source.owner
    if not isinstance(iota, Iota) or (iota.length, iota.start, iota.step) != (extent, 0, 1):
        return None
    wide = [p for p, e in enumerate(index.shape) if e != 1]
    if len(wide) != 1:
        return None
    return wide[0] + rank - len(index.shape)


def _by_axis(
    buffer: Value, update: IndexPut, every: tuple[Dim, ...], ranges: dict[int, int], free: int
) -> Value:
    """The source of an assignment with its dims in the order of the buffer's."""
    axes = update.axes
    adjacent = axes == tuple(range(axes[0], axes[0] + len(axes)))
    place = axes[0] if adjacent else 0
    others: list[int] = [a for a in range(buffer.tensor.rank) if a not in axes]
    shape = [*(buffer.shape[a] for a in others[:place]), *every]
    shape += [buffer.shape[a] for a in others[place:]]
    src = update.src
    if src.shape != tuple(shape):
        src = Expand(src, shape=tuple(shape)).y
    # Dims of the index of extent 1 belong to no range; the free axis takes one, others go.
    keep: list[tuple[int, Dim]] = []
    for position, extent in enumerate(every):
        if position in ranges:
            keep.append((ranges[position], extent))
        elif extent != 1:
            keep.append((free, extent))
    if free not in dict(keep):
        keep.append((free, 1))
    dims = [*((a, buffer.shape[a]) for a in others[:place]), *keep]
    dims += [(a, buffer.shape[a]) for a in others[place:]]
    flat = tuple(e for _, e in dims)
    if src.shape != flat:
        src = Reshape(src, shape=flat).y
    order = tuple(sorted(range(len(dims)), key=lambda i: dims[i][0]))
    return src if order == tuple(range(len(dims))) else Permute(src, dims=order).y


def _wrapped(index: Value, extent: Dim) -> Value:
    """An index whose negative elements count from the end, as one that has none."""
    if _not_negative(index):
        return index
    return Remainder(index, Full(value=extent, dtype=DType.I64).y).y


def _not_negative(index: Value) -> bool:
    """Whether all elements are known to be zero or more; sizes are."""
    owner = index.owner
    match owner:
        case Iota(start=start, step=step):
            return all(not isinstance(v, float) and _is_natural(v) for v in (start, step))
        case Full():
            known = number(index)
            return _is_natural(owner.value) if known is None else known >= 0
        case Reshape(x) | Expand(x) | Permute(x) | Slice(x):
            return _not_negative(x)
        case Add(lhs, rhs):
            return _not_negative(lhs) and _not_negative(rhs)
        case _:
            return False


def _is_natural(value: object) -> bool:
    return value >= 0 if isinstance(value, int) else bool(getattr(value, "is_nonnegative", False))
