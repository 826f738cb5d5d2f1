"""What is moved by index, and between which places: geometry that every target shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fuseline.codegen.lower import NeedDense, Refusal, not_dense
from fuseline.ir.core import Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.buffer import IndexWrite, ShiftWrite
from fuseline.ir.ops.index import Embedding, Gather, Index, IndexCopy, IndexSelect
from fuseline.ir.types import Dim, DType, dim, product, same

INDEX_TYPES = (DType.I64, DType.I32)


@dataclass(frozen=True)
class IndexedAxis:
    """An axis of x that an index tells the place on; ``strides`` is one for each result dim."""

    index: Value
    strides: Sequence[Dim]
    size: Dim
    step: Dim


@dataclass(frozen=True)
class Gathered:
    """Rows of ``width`` elements of x, by index: y is dense, its rows are walked over ``walks``.

    Attributes:
        x: what is read.
        y: what is written.
        axes: the indexed axes of x.
        walks: each dim of the rows as its extent, then its stride in x and in each index.
        width: elements of a row.
        wraps: whether negative indices count from the end.

    """

    x: Value
    y: Value
    axes: tuple[IndexedAxis, ...]
    walks: tuple[tuple[Dim, ...], ...]
    width: Dim
    wraps: bool


GatherOp = Embedding | Index | IndexSelect | Gather


def gathered(op: GatherOp, layouts: LayoutMap) -> Gathered | Refusal:
    """What an op gathers.

    Where the indices of an `Index` are not of adjacent axes, the index dims come first. A `Gather`
    has an index as wide as its result, which moves along the other axes of x too.
    """
    match op:
        case Embedding():
            return _sliced(op.weight, op.y, {0: op.indices}, 0, layouts, wraps=False)
        case Index():
            by_axis = dict(zip(op.axes, op.indices, strict=True))
            return _sliced(op.x, op.y, by_axis, op.place, layouts, wraps=True)
        case IndexSelect():
            if not op.index.shape:
                return Refusal("the index is a single number")
            return _sliced(op.x, op.y, {op.axis: op.index}, op.axis, layouts, wraps=False)
        case Gather():
            strides = list(layouts.layout(op.x).strides)
            step, strides[op.axis] = strides[op.axis], 0
            walk = layouts.layout(op.index).strides
            axis = IndexedAxis(op.index, walk, op.x.shape[op.axis], step)
            return _walked(op.x, op.y, strides, [axis], wraps=False)


def _sliced(
    x: Value,
    y: Value,
    indices: Mapping[int, Value],
    place: int,
    layouts: LayoutMap,
    *,
    wraps: bool,
) -> Gathered | Refusal:
    """Indices by axis, whose broadcast dims stand from ``place`` on in the result."""
    layout = layouts.layout(x)
    rank = y.tensor.rank
    selected = rank - (x.tensor.rank - len(indices))
    strides: list[Dim] = [s for a, s in enumerate(layout.strides) if a not in indices]
    strides[place:place] = [0] * selected
    axes: list[IndexedAxis] = []
    for axis, index in indices.items():
        walk = list(layouts.layout(index).strides)
        walk = [0 if e == 1 else s for e, s in zip(index.shape, walk, strict=True)]
        walk = [0] * (place + selected - len(walk)) + walk
        walk += [0] * (rank - len(walk))
        axes.append(IndexedAxis(index, walk, x.shape[axis], layout.strides[axis]))
    return _walked(x, y, strides, axes, wraps=wraps)


def _walked(
    x: Value, y: Value, strides: Sequence[Dim], axes: Sequence[IndexedAxis], *, wraps: bool
) -> Gathered | Refusal:
    for axis in axes:
        if axis.index.dtype not in INDEX_TYPES:
            return Refusal(f"index {axis.index.type}; the kernel takes i64 and i32")
    # each dim as its extent, and its strides in x and in the indices
    walks = list(zip(y.shape, strides, *(axis.strides for axis in axes), strict=True))
    walks = [walk for walk in walks if walk[0] != 1]
    width: Dim = 1
    while walks and same(walks[-1][1], width) and all(s == 0 for s in walks[-1][2:]):
        width = dim(width * walks.pop()[0])
    merged: list[tuple[Dim, ...]] = []
    for extent, *steps in walks:
        outer = merged[-1] if merged else (0,)
        if merged and all(same(dim(extent * s), o) for s, o in zip(steps, outer[1:], strict=True)):
            merged[-1] = (dim(outer[0] * extent), *steps)
        else:
            merged.append((extent, *steps))
    merged = merged or [(1, *[0] * (1 + len(axes)))]
    return Gathered(x, y, tuple(axes), tuple(merged), width, wraps)


@dataclass(frozen=True)
class Slices:
    """Slices along an axis of what has the extents ``[outer, inner, slices, width]``.

    ``source`` and ``target`` are strides of outer, inner and slices; those of width are 1, but for
    the target begin at element ``at``.
    """

    outer: Dim
    inner: Dim
    width: Dim
    source: tuple[Dim, Dim, Dim]
    target: tuple[Dim, Dim, Dim]
    at: Dim = 0


def index_written(op: IndexWrite | IndexCopy, layouts: LayoutMap) -> Slices | NeedDense | Refusal:
    """What an op writes by its index, which is dense, along its axis of the buffer or of y."""
    target = op.buffer if isinstance(op, IndexWrite) else op.y
    if op.src.dtype is not target.dtype:
        verb = "written into" if isinstance(op, IndexWrite) else "put into"
        return Refusal(f"{op.src.type} {verb} {target.type}")
    if op.index.dtype not in INDEX_TYPES:
        return Refusal(f"index {op.index.type}; the kernel takes i64 and i32")
    if need := not_dense([op.index], layouts):
        return need
    place = layouts.layout(target)
    origin = (op.origin if isinstance(op, IndexWrite) else ()) or (0,) * op.src.tensor.rank
    at = dim(sum(start * step for start, step in zip(origin, place.strides, strict=True)))
    return _slices(op.src, target, op.src.shape, op.axis, layouts, at)


def shift_written(op: ShiftWrite, layouts: LayoutMap) -> Slices | NeedDense | Refusal:
    """What an op moves on: the slices of its buffer along its axis."""
    if op.src.dtype is not op.buffer.dtype:
        return Refusal(f"{op.src.type} written into {op.buffer.type}")
    return _slices(op.src, op.buffer, op.buffer.shape, op.axis, layouts, 0)


def _slices(
    src: Value, target: Value, shape: Sequence[Dim], axis: int, layouts: LayoutMap, at: Dim
) -> Slices | NeedDense | Refusal:
    source = _levels(src.shape, axis, layouts.layout(src))
    if source is None:
        return NeedDense((src,))
    into = _levels(shape, axis, layouts.layout(target))
    if into is None or into[0] != source[0]:
        return Refusal(f"{src.type} written along axis {axis} of {target.type}")
    return Slices(*source[0], source[1], into[1], at)


def _levels(
    shape: Sequence[Dim], axis: int, layout: Layout
) -> tuple[tuple[Dim, Dim, Dim], tuple[Dim, Dim, Dim]] | None:
    """Some elements as ``[outer, inner, slices, width]``: extents (but the slices') and strides.

    None where the dims behind the axis are not dense, or those before it need three strides.
    """
    strides = layout.strides
    tail = Layout(0, strides[axis + 1 :])
    if not tail.is_dense(shape[axis + 1 :]):
        return None
    lead = [(e, s) for e, s in zip(shape[:axis], strides[:axis], strict=True) if e != 1]
    while len(lead) > 2 and dim(lead[-1][0] * lead[-1][1]) == lead[-2][1]:
        (extent, _), (last, stride) = lead[-2:]
        lead[-2:] = [(dim(extent * last), stride)]
    if len(lead) > 2:
        return None
    (outer, outer_step), (inner, inner_step) = [(1, 0)] * (2 - len(lead)) + lead
    width = product(shape[axis + 1 :])
    return (outer, inner, width), (outer_step, inner_step, strides[axis])


__all__ = [
    "GatherOp",
    "Gathered",
    "IndexedAxis",
    "Slices",
    "gathered",
    "index_written",
    "shift_written",
]
