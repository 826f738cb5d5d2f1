"""Imports ATen ops that rearrange elements."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fuseline.frontend.builder import Builder, Scalar, axis_of, imports
from fuseline.ir.core import Value
from fuseline.ir.ops.view import Concat, Pad
from fuseline.ir.types import Dim, dim


@imports("aten.clone.default", "aten.contiguous.default", "aten.alias.default")
@imports("aten.detach.default", "aten.lift_fresh.default", "aten.lift_fresh_copy.default")
def _same(b: Builder, x: Value, **options: Any) -> Value:
    return x


@imports("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
@imports("aten.unsqueeze.default", "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
@imports("aten.flatten.using_ints", "aten.unflatten.int", "aten.view_copy.default")
def _reshape(b: Builder, x: Value, *arguments: Any) -> Any:
    if b.expected[0].dtype is not x.dtype:
        return NotImplemented
    return b.reshape(x, b.expected[0].shape)


@imports("aten.permute.default")
def _permute(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    return b.permute(x, [axis_of(d, x.tensor.rank) for d in dims])


@imports("aten.transpose.int")
def _transpose(b: Builder, x: Value, first: int, second: int) -> Value:
    rank = x.tensor.rank
    order = list(range(rank))
    if rank:
        one, other = axis_of(first, rank), axis_of(second, rank)
        order[one], order[other] = other, one
    return b.permute(x, order)


@imports("aten.t.default")
def _t(b: Builder, x: Value) -> Value:
    return b.permute(x, tuple(reversed(range(x.tensor.rank))))


@imports("aten.expand.default")
def _expand(b: Builder, x: Value, size: Sequence[Dim], implicit: bool = False) -> Value:
    return b.expand(x, b.expected[0].shape)


def place_in(b: Builder, bound: Any, extent: Dim) -> Dim | None:
    """An index or slice bound as torch reads it: from the end where it is negative, and within the
    extent. None for one of which it cannot be told whether it is negative.
    """
    if isinstance(bound, int):
        if bound >= 0:
            return min(bound, extent) if isinstance(extent, int) else bound
        place = dim(extent + bound)
        return max(place, 0) if isinstance(place, int) else place
    if b.is_nonnegative(bound):
        return bound
    return dim(extent + bound) if b.is_nonnegative(dim(-bound - 1)) else None


def slice_start(
    b: Builder, start: Any, stop: Any, extent: Dim, size: Dim, step: int = 1
) -> Dim | None:
    """Where a slice that tracing found to have ``size`` elements starts; None where that is not
    known: tracing does not tell whether a bound from the end was clamped.
    """
    first = place_in(b, 0 if start is None else start, extent)
    if first is None or b.is_nonnegative(first):
        return first
    from_end = stop is None or (isinstance(stop, int) and stop < 0) or stop == sys.maxsize
    if step != 1 or not from_end:
        return None
    end = dim(extent + stop) if isinstance(stop, int) and stop < 0 else extent
    return dim(end - size) if b.is_nonnegative(end) else None


@imports("aten.slice.Tensor")
def _slice(
    b: Builder, x: Value, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Any:
    axis = axis_of(axis, x.tensor.rank)
    extent = x.shape[axis]
    size = b.expected[0].shape[axis]
    first = slice_start(b, start, stop, extent, size, step)
    if first is None:
        return NotImplemented
    if step == 1:  # tracing has worked out the extent, clamped bounds included
        if size == extent:
            return x
        return b.slice(x, axis, first, dim(first + size))
    if not isinstance(size, int):
        return NotImplemented
    return b.slice(x, axis, first, dim(first + (size - 1) * step + 1), step)


@imports("aten.select.int")
def _select(b: Builder, x: Value, axis: int, index: Any) -> Any:
    axis = axis_of(axis, x.tensor.rank)
    place = place_in(b, index, x.shape[axis])
    if place is None:
        return NotImplemented
    part = b.slice(x, axis, place, dim(place + 1))
    return b.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))


@imports("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default")
@imports("aten.tensor_split.sections", "aten.split_with_sizes_copy.default")
def _split(b: Builder, x: Value, sizes: Any, axis: int = 0) -> tuple[Value, ...]:
    axis = axis_of(axis, x.tensor.rank)
    parts: list[Value] = []
    start: Dim = 0
    for kind in b.expected:
        stop = dim(start + kind.shape[axis])
        parts.append(b.slice(x, axis, start, stop))
        start = stop
    return tuple(parts)


@imports("aten.unbind.int")
def _unbind(b: Builder, x: Value, axis: int = 0) -> tuple[Any, ...]:
    return tuple(_select(b, x, axis, i) for i in range(len(b.expected)))


@imports("aten.cat.default", "aten.concat.default")
def _cat(b: Builder, xs: Sequence[Value], axis: int = 0) -> Value:
    rank = max(x.tensor.rank for x in xs)
    parts = [x for x in xs if not (x.shape == (0,) and rank > 1)]  # torch lets those pass
    return parts[0] if len(parts) == 1 else b.add(Concat(tuple(parts), axis=axis_of(axis, rank))).y


@imports("aten.stack.default")
def _stack(b: Builder, xs: Sequence[Value], axis: int = 0) -> Value:
    axis = axis_of(axis, xs[0].tensor.rank + 1)
    shape = xs[0].shape
    rows = [b.reshape(x, (*shape[:axis], 1, *shape[axis:])) for x in xs]
    return rows[0] if len(rows) == 1 else b.add(Concat(tuple(rows), axis=axis)).y


@imports("aten.repeat.default")
def _repeat(b: Builder, x: Value, repeats: Sequence[Dim]) -> Value:
    """By a new dim of extent 1 before each, broadcast, and a reshape."""
    shape: list[Dim] = [1] * (len(repeats) - x.tensor.rank) + list(x.shape)
    if list(repeats) == [1] * len(repeats):
        return b.reshape(x, shape)
    apart = [extent for size in shape for extent in (1, size)]
    wide = [e for times, size in zip(repeats, shape, strict=True) for e in (times, size)]
    return b.reshape(b.expand(b.reshape(x, apart), wide), b.expected[0].shape)


@imports("aten.repeat_interleave.self_int")
def _repeat_interleave(
    b: Builder, x: Value, repeats: Dim, axis: int | None = None, output_size: Any = None
) -> Value:
    if axis is None:
        x, axis = b.reshape(x, (x.tensor.numel,)), 0
    axis = axis_of(axis, x.tensor.rank)
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    apart = b.reshape(x, (*before, size, 1, *after))
    wide = b.expand(apart, (*before, size, repeats, *after))
    return b.reshape(wide, b.expected[0].shape)


@imports("aten.roll.default")
def _roll(b: Builder, x: Value, shifts: Sequence[Dim], dims: Sequence[int] = ()) -> Any:
    """The last ``shift`` elements before the others, where the extent is known to have as many."""
    if not dims:
        return NotImplemented
    for shift, axis in zip(shifts, dims, strict=True):
        axis = axis_of(axis, x.tensor.rank)
        extent = x.shape[axis]
        if not isinstance(shift, int) or abs(shift) > b.least(extent):
            return NotImplemented
        cut = dim(extent - shift) if shift > 0 else -shift
        parts = (b.slice(x, axis, cut, extent), b.slice(x, axis, 0, cut))
        x = b.add(Concat(parts, axis=axis)).y if shift else x
    return x


@imports("aten.constant_pad_nd.default")
def _pad(b: Builder, x: Value, pad: Sequence[Dim], value: Scalar = 0) -> Any:
    rank = x.tensor.rank
    for number in range(len(pad) // 2):
        axis = rank - 1 - number
        before, after = pad[2 * number], pad[2 * number + 1]
        start = dim(-before) if isinstance(before, int) and before < 0 else 0
        stop = dim(x.shape[axis] + after) if isinstance(after, int) and after < 0 else x.shape[axis]
        x = b.slice(x, axis, start, stop)
        grow = [0 if isinstance(v, int) and v < 0 else v for v in (before, after)]
        if grow != [0, 0]:
            x = b.add(Pad(x, axis=axis, before=grow[0], after=grow[1], value=float(value))).y
    return x


@imports("aten.movedim.int", "aten.movedim.intlist")
def _movedim(b: Builder, x: Value, source: Any, destination: Any) -> Value:
    rank = x.tensor.rank
    sources = [source] if isinstance(source, int) else list(source)
    places = [destination] if isinstance(destination, int) else list(destination)
    moved = {axis_of(d, rank): axis_of(s, rank) for s, d in zip(sources, places, strict=True)}
    rest = iter([a for a in range(rank) if a not in moved.values()])
    return b.permute(x, [moved[a] if a in moved else next(rest) for a in range(rank)])
