"""Functional updates of a tensor, and the writes in place that do the same to a buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.buffer import IndexWrite, ShiftWrite, SliceWrite
from fuseline.ir.ops.index import IndexCopy, IndexPut, Scatter, SliceScatter
from fuseline.ir.ops.view import Concat, Reshape, Slice
from fuseline.ir.types import Dim, dim
from fuseline.passes.rewrite import NoMatch
from fuseline.passes.slices import as_slices

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


@dataclass(frozen=True)
class Part:
    """The part of a buffer that an update is about: the whole, or a slice of a slice of it.

    Attributes:
        buffer: the buffer.
        shape: extents of the part in the buffer's dims.
        origin: where it begins.
        axes: the buffer's dims that the part has; one that a number picks a place of is gone.
    """

    buffer: Value
    shape: tuple[Dim, ...]
    origin: tuple[Dim, ...]
    axes: tuple[int, ...]

    @classmethod
    def whole(cls, buffer: Value) -> Part:
        """All of a buffer."""
        rank = buffer.tensor.rank
        return cls(buffer, buffer.shape, (0,) * rank, tuple(range(rank)))

    @property
    def own_shape(self) -> tuple[Dim, ...]:
        """The shape of the part as the value that the update changes has it."""
        return tuple(self.shape[a] for a in self.axes)

    def narrowed(self, update: SliceScatter, *, picked: bool) -> Part:
        """The slice that an update replaces; ``picked``: without its dim."""
        axis = self.axes[update.axis]
        shape, origin = list(self.shape), list(self.origin)
        shape[axis] = dim(update.stop - update.start)
        origin[axis] = dim(self.origin[axis] + update.start)
        axes = tuple(a for a in self.axes if a != axis or not picked)
        return Part(self.buffer, tuple(shape), tuple(origin), axes)

    def begin(self, axis: int) -> tuple[Dim, ...]:
        """The ``origin`` of a write along one of the buffer's dims."""
        begin = tuple(0 if a == axis else start for a, start in enumerate(self.origin))
        return begin if any(start != 0 for start in begin) else ()

    def in_full(self, src: Value) -> Value:
        """A source with the dims that the part lacks."""
        if len(self.axes) == self.buffer.tensor.rank:
            return src
        extents = dict(zip(self.axes, src.shape, strict=True))
        shape = tuple(extents.get(a, 1) for a in range(self.buffer.tensor.rank))
        return Reshape(src, shape=shape).y


def in_place(buffer: Value, update: Update) -> IndexWrite | SliceWrite | ShiftWrite | NoMatch:
    """The write that does to a buffer what ``update`` does to its operand, or why there is none."""
    return _in_place(Part.whole(buffer), update)


def _in_place(part: Part, update: Update) -> IndexWrite | SliceWrite | ShiftWrite | NoMatch:
    buffer = part.buffer
    src = update.xs[1] if isinstance(update, Concat) else update.src
    if src.dtype is not buffer.dtype:
        return NoMatch(f"{update.name} puts {src.dtype} into {buffer.type}")
    match update:
        case Concat():
            if part != Part.whole(buffer):
                return NoMatch("a part of a buffer moves on")
            return ShiftWrite(buffer, src, axis=update.axis)
        case SliceScatter():
            return _slice_write(part, update)
        case _:
            return _index_write(part, update)


def _slice_write(part: Part, update: SliceScatter) -> IndexWrite | SliceWrite | NoMatch:
    if update.step != 1:
        return NoMatch(f"slice_scatter with a step of {update.step}")
    write = _nested(part, update)
    if write is not None:
        return write
    axis = part.axes[update.axis]
    at = part.origin[axis]
    return SliceWrite(
        part.buffer,
        part.in_full(update.src),
        axis=axis,
        start=dim(at + update.start),
        stop=dim(at + update.stop),
        origin=part.begin(axis),
    )


def _nested(part: Part, update: SliceScatter) -> IndexWrite | SliceWrite | None:
    """The write of what is put into a slice where that is an update of the same slice."""
    made = update.src
    picked = isinstance(made.owner, Reshape)
    inner = as_update(made.owner.x.owner if isinstance(made.owner, Reshape) else made.owner)
    if inner is None:
        return None
    within = part.narrowed(update, picked=picked)
    source = updated(inner)
    if source.shape != within.own_shape:
        return None
    if picked:
        source = source.owner.x if isinstance(source.owner, Reshape) else source
    if not _is_slice(source.owner, update):
        return None
    write = _in_place(within, inner)
    return None if isinstance(write, (ShiftWrite, NoMatch)) else write


def _is_slice(op: Op | None, update: SliceScatter) -> bool:
    """Whether an op takes the slice that an update replaces."""
    if not isinstance(op, Slice) or op.x is not update.x or op.step != 1:
        return False
    return (op.axis, op.start, op.stop) == (update.axis, update.start, update.stop)


def _index_write(part: Part, update: IndexCopy | IndexPut | Scatter) -> IndexWrite | NoMatch:
    slices = as_slices(update, part.own_shape)
    if isinstance(slices, NoMatch):
        return slices
    axis = part.axes[slices.axis]
    if (part.origin[axis], part.shape[axis]) != (0, part.buffer.shape[axis]):
        return NoMatch(f"{update.name} counts from the beginning of a slice")
    src = part.in_full(slices.src)
    return IndexWrite(part.buffer, slices.index, src, axis=axis, origin=part.begin(axis))
