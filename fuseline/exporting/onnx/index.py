"""Ops that read and write by indices."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.exporting.onnx.pointwise import wide
from fuseline.exporting.onnx.registry import emits
from fuseline.exporting.onnx.view import expanded, reshaped, sliced
from fuseline.exporting.onnx.writer import Writer
from fuseline.ir.core import Value
from fuseline.ir.ops import index as i
from fuseline.ir.types import Dim, DType, broadcast, same


@emits(i.Embedding)
def _embedding(w: Writer, op: i.Embedding) -> str:
    return w.node("Gather", w[op.weight], w.of(op.indices, DType.I64), axis=0)


@emits(i.IndexSelect)
def _index_select(w: Writer, op: i.IndexSelect) -> str:
    if not op.x.tensor.rank:
        return w[op.x]
    index = w.of(op.index, DType.I64)
    if op.index.tensor.rank != 1:
        index = w.node("Reshape", index, w.ints(-1))
    return w.node("Gather", w[op.x], index, axis=op.axis)


@emits(i.Gather)
def _gather(w: Writer, op: i.Gather) -> str:
    if not op.x.tensor.rank:
        return w[op.x]
    return w.node("GatherElements", w[op.x], w.of(op.index, DType.I64), axis=op.axis)


@emits(i.Scatter)
def _scatter(w: Writer, op: i.Scatter) -> str:
    src = expanded(w, w.of(op.src, op.x.dtype), op.src.shape, op.index.shape)
    index = w.of(op.index, DType.I64)
    if not op.x.tensor.rank:
        return src
    return w.node("ScatterElements", w[op.x], index, src, axis=op.axis)


def _front(w: Writer, name: str, rank: int, axes: Sequence[int]) -> tuple[str, list[int]]:
    """What has a name with these axes first, and the order of axes that does that."""
    order = [*axes, *(a for a in range(rank) if a not in axes)]
    if order == list(range(rank)):
        return name, order
    return w.node("Transpose", name, perm=order), order


def _back(w: Writer, name: str, order: Sequence[int]) -> str:
    """Undo an order of axes."""
    if list(order) == sorted(order):
        return name
    return w.node("Transpose", name, perm=[order.index(a) for a in range(len(order))])


def _places(w: Writer, indices: Sequence[Value]) -> tuple[str, tuple[Dim, ...]]:
    """Indices side by side in a new last dim, and the shape of one of them."""
    shape = broadcast([index.shape for index in indices])
    parts: list[str] = []
    for index in indices:
        wide = expanded(w, w.of(index, DType.I64), index.shape, shape)
        parts.append(w.node("Unsqueeze", wide, w.ints(-1)))
    return (parts[0] if len(parts) == 1 else w.node("Concat", *parts, axis=-1)), shape


@emits(i.Index)
def _index(w: Writer, op: i.Index) -> str:
    if len(op.axes) == 1:
        return w.node("Gather", w[op.x], w.of(op.indices[0], DType.I64), axis=op.axes[0])
    x, _ = _front(w, w[op.x], op.x.tensor.rank, op.axes)
    places, shape = _places(w, op.indices)
    found = w.node("GatherND", x, places)
    count, at = len(shape), op.place
    rest = op.y.tensor.rank - count
    if not at or not count:
        return found
    order = [*range(count, count + at), *range(count), *range(count + at, count + rest)]
    return w.node("Transpose", found, perm=order)


@emits(i.IndexPut)
def _index_put(w: Writer, op: i.IndexPut) -> str:
    """Written with the indexed axes first, and turned back."""
    rank = op.x.tensor.rank
    x, order = _front(w, w[op.x], rank, op.axes)
    places, shape = _places(w, op.indices)
    rest: list[Dim] = [d for a, d in enumerate(op.x.shape) if a not in op.axes]
    adjacent = tuple(op.axes) == tuple(range(op.axes[0], op.axes[0] + len(op.axes)))
    at = op.axes[0] if adjacent else 0
    have = (*rest[:at], *shape, *rest[at:])
    src = expanded(w, w.of(op.src, op.x.dtype), op.src.shape, have)
    if at and shape:
        turned = [*range(at, at + len(shape)), *range(at), *range(at + len(shape), len(have))]
        src = w.node("Transpose", src, perm=turned)
    dtype = op.x.dtype
    found = (
        added(w, x, places, src, dtype) if op.accumulate else w.node("ScatterND", x, places, src)
    )
    return _back(w, found, order)


def added(w: Writer, x: str, places: str, src: str, dtype: DType) -> str:
    """x with something added at places ``[.., n]``: in a type that runtimes can add up in."""
    kind = DType.I32 if dtype is DType.BOOL else wide(dtype)
    given = (w.cast(x, dtype, kind), places, w.cast(src, dtype, kind))
    return w.cast(w.node("ScatterND", *given, reduction="add"), kind, dtype)


def _written(w: Writer, x: Value, place: str, src: str, axis: int) -> str:
    """x with the slices at places (i64, 1-d) along an axis replaced."""
    rank = x.tensor.rank
    target, order = _front(w, w[x], rank, [axis])
    source, _ = _front(w, src, rank, [axis])
    places = w.node("Unsqueeze", place, w.ints(-1))
    return _back(w, w.node("ScatterND", target, places, source), order)


@emits(i.IndexCopy)
def _index_copy(w: Writer, op: i.IndexCopy) -> str:
    place = w.of(op.index, DType.I64)
    if op.index.tensor.rank != 1:
        place = w.node("Reshape", place, w.ints(-1))
    src = w.of(op.src, op.x.dtype)
    if not op.x.tensor.rank:
        return reshaped(w, src, op.src.shape, ())
    return _written(w, op.x, place, src, op.axis)


@emits(i.SliceScatter)
def _slice_scatter(w: Writer, op: i.SliceScatter) -> str:
    src = w.of(op.src, op.x.dtype)
    if op.step != 1:
        ends = (w.number(d, DType.I64) for d in (op.start, op.stop, op.step))
        return _written(w, op.x, w.node("Range", *ends), src, op.axis)
    parts = [src]
    if op.start != 0:
        parts.insert(0, sliced(w, w[op.x], op.axis, 0, op.start))
    if not same(op.stop, op.x.shape[op.axis]):
        parts.append(sliced(w, w[op.x], op.axis, op.stop, None))
    return parts[0] if len(parts) == 1 else w.node("Concat", *parts, axis=op.axis)


__all__ = ["added"]
