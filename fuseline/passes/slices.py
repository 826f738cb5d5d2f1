"""Updates of a tensor by index that replace whole slices along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Value
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.index import IndexCopy, IndexPut, Scatter
from fuseline.ir.ops.pointwise import Add, Lt, Where
from fuseline.ir.ops.view import Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, broadcast, product
from fuseline.passes.constants import number
from fuseline.passes.match import reshaped
from fuseline.passes.rewrite import NoMatch


@dataclass(frozen=True)
class Slices:
    """Slices ``src`` that take the places ``index`` (1-d, none negative) along ``axis``."""

    index: Value
    src: Value
    axis: int


def as_slices(update: IndexCopy | IndexPut | Scatter, shape: Sequence[Dim]) -> Slices | NoMatch:
    """An update of a value of this shape, as one of whole slices; or why it is none."""
    match update:
        case IndexCopy():
            return Slices(update.index, update.src, update.axis)
        case IndexPut():
            return _index_put(update, shape)
        case Scatter():
            return _scatter(update, shape)


def _scatter(update: Scatter, whole: Sequence[Dim]) -> Slices | NoMatch:
    """A scatter by an index that varies along its axis alone, over the whole of the other dims."""
    index, axis = update.index, update.axis
    shape = list(index.shape)
    shape[axis] = whole[axis]
    if shape != list(whole):
        return NoMatch(f"scatter by {index.type} leaves out parts of {update.x.type}")
    row = index.owner.x if isinstance(index.owner, Expand) else index
    lead = len(index.shape) - len(row.shape)
    if any(e != 1 for a, e in enumerate(row.shape) if a + lead != axis):
        return NoMatch("scatter by an index that varies along more than its axis")
    src = update.src if update.src.shape == index.shape else Expand(update.src, shape=index.shape).y
    return Slices(_flat(row), src, axis)


def _flat(index: Value) -> Value:
    """An index with one dim that matters as a 1-d one."""
    length = product(index.shape)
    return index if index.shape == (length,) else Reshape(index, shape=(length,)).y


def _index_put(update: IndexPut, whole: Sequence[Dim]) -> Slices | NoMatch:
    """An assignment by index along one axis; further axes may be indexed by whole ranges."""
    if update.accumulate:
        return NoMatch("index_put adds to what is there")
    every = broadcast([i.shape for i in update.indices])
    ranges: dict[int, int] = {}  # position among the dims of the index: the axis that it runs over
    free: list[tuple[int, Value]] = []
    for axis, index in zip(update.axes, update.indices, strict=True):
        position = _range_position(index, whole[axis], len(every))
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
    src = _by_axis(update, whole, every, ranges, axis)
    return Slices(_wrapped(_flat(index), whole[axis]), src, axis)


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
    update: IndexPut,
    whole: Sequence[Dim],
    every: tuple[Dim, ...],
    ranges: dict[int, int],
    free: int,
) -> Value:
    """The source of an assignment with its dims in the order of what it is put into."""
    axes = update.axes
    adjacent = axes == tuple(range(axes[0], axes[0] + len(axes)))
    place = axes[0] if adjacent else 0
    others: list[int] = [a for a in range(len(whole)) if a not in axes]
    shape = [*(whole[a] for a in others[:place]), *every]
    shape += [whole[a] for a in others[place:]]
    src = update.src
    if src.tensor.numel == product(shape):
        src = reshaped(src, tuple(shape))  # at most dims of extent 1 are put before the others
    else:
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
    dims = [*((a, whole[a]) for a in others[:place]), *keep]
    dims += [(a, whole[a]) for a in others[place:]]
    flat = tuple(e for _, e in dims)
    if src.shape != flat:
        src = Reshape(src, shape=flat).y
    order = tuple(sorted(range(len(dims)), key=lambda i: dims[i][0]))
    return src if order == tuple(range(len(dims))) else Permute(src, dims=order).y


def _wrapped(index: Value, extent: Dim) -> Value:
    """An index whose negative elements count from the end, as one that has none.

    One that is outside stays outside.
    """
    if _not_negative(index):
        return index
    zero, size = (Full(value=value, dtype=index.dtype).y for value in (0, extent))
    return Where(Lt(index, zero).y, Add(index, size).y, index).y


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
