"""Gather and scatter operators."""

from __future__ import annotations

from typing import Any

import torch

from fuseline.frontend.onnx.bounds import holds
from fuseline.frontend.onnx.data import exact
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.reduce import gather_along
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.frontend.onnx.view import constant
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.index import Index, IndexPut, IndexSelect, Scatter
from fuseline.ir.types import Dim, DType, TensorType, dim, product


def from_front(n: Node, index: Value, extent: Dim) -> Value:
    """Indices as i64, counted from the front."""
    index = n.b.cast(index, DType.I64)
    below = n.b.add(p.Lt(index, n.full(0, DType.I64))).y
    moved = n.b.add(p.Add(index, n.full(extent, DType.I64))).y
    return n.b.add(p.Where(below, moved, index)).y


@onnx_op("Gather")
def _gather(n: Node) -> Value:
    x, axis = n.x(0), n.axis(0)
    extent, elements = x.shape[axis], n.given(1).elements
    if elements is not None and elements.ndim == 0:  # one place: a slice
        at = dim(elements.item())
        first = dim(extent + at) if isinstance(at, int) and at < 0 else at
        if holds(n, 0, first) and holds(n, dim(first + 1), extent):
            part = n.b.slice(x, axis, first, dim(first + 1))
            return n.b.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))
    return n.b.add(Index(x, (n.b.cast(n.x(1), DType.I64),), axes=(axis,))).y


@onnx_op("GatherElements")
def _gather_elements(n: Node) -> Value:
    return gather_along(n, n.x(0), n.x(1), n.axis(0))


def _columns(n: Node, index: Value, batch: int) -> list[Value]:
    """The index of each axis that the rows of an index tensor choose by, batch axes first."""
    width = index.shape[-1]
    if not isinstance(width, int):
        raise Unsupported(f"rows of {width} indices")
    index = n.b.cast(index, DType.I64)
    rows = index.shape[:-1]
    found: list[Value] = []
    for axis in range(batch):
        shape = [e if a == axis else 1 for a, e in enumerate(rows)]
        found.append(n.b.reshape(n.b.add(Iota(length=rows[axis])).y, shape))
    last = index.tensor.rank - 1
    parts = (n.b.slice(index, last, column, column + 1) for column in range(width))
    return found + [n.b.reshape(part, rows) for part in parts]


@onnx_op("GatherND", since=11)
def _gather_nd(n: Node) -> Value:
    columns = _columns(n, n.x(1), n.attr("batch_dims", 0))
    return n.b.add(Index(n.x(0), tuple(columns), axes=tuple(range(len(columns))))).y


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@onnx_op("ScatterElements", "Scatter")
def _scatter_elements(n: Node) -> Value:
    x, axis, reduction = n.x(0), n.axis(0), n.attr("reduction", "none")
    index = from_front(n, n.x(1), x.shape[axis])
    if reduction == "none":
        return n.b.add(Scatter(x, index, n.x(2), axis=axis)).y
    return _scatter_reduce(n, x, axis, index, n.x(2), reduction)


def _scatter_reduce(
    n: Node, x: Value, axis: int, index: Value, src: Value, reduction: str
) -> Value:
    how = _REDUCTIONS[reduction]
    return n.call("scatter_reduce.two", x, axis, index, src, how, kind=x.tensor)


@onnx_op("ScatterND")
def _scatter_nd(n: Node) -> Value:
    x, src, reduction = n.x(0), n.x(2), n.attr("reduction", "none")
    columns = _columns(n, n.x(1), 0)
    axes = tuple(range(len(columns)))
    if reduction in ("none", "add"):
        put = IndexPut(x, tuple(columns), src, axes=axes, accumulate=reduction == "add")
        return n.b.add(put).y
    place: Value | None = None  # of a row among all that the first axes choose among
    for axis, column in enumerate(columns):
        column = from_front(n, column, x.shape[axis])
        if place is not None:
            size = n.full(x.shape[axis], DType.I64)
            column = n.b.add(p.Add(n.b.add(p.Mul(place, size)).y, column)).y
        place = column
    assert place is not None, "rows of no index"
    rest = product(x.shape[len(columns) :])
    flat = n.b.reshape(x, (product(x.shape[: len(columns)]), rest))
    count = product(place.shape)
    index = n.b.expand(n.b.reshape(place, (count, 1)), (count, rest))
    done = _scatter_reduce(n, flat, 0, index, n.b.reshape(src, (count, rest)), reduction)
    return n.b.reshape(done, x.shape)


@onnx_op("OneHot", since=11)
def _one_hot(n: Node) -> Value:
    index, depth, values = n.x(0), dim(exact(n.number(1))), n.x(2)
    rank = index.tensor.rank + 1
    axis = n.axis(-1, rank)
    index = index if index.dtype.is_float else n.b.cast(index, DType.I64)
    if index.dtype.is_float:
        index = n.b.cast(index, DType.I64)
    chosen = n.unsqueeze(from_front(n, index, depth), [axis])
    places = n.b.add(Iota(length=depth)).y
    places = n.b.reshape(places, [depth if a == axis else 1 for a in range(rank)])
    hot = n.b.add(p.Eq(chosen, places)).y
    off, on = (n.b.reshape(n.b.slice(values, 0, i, i + 1), ()) for i in (0, 1))
    return n.b.add(p.Where(hot, on, off)).y


@onnx_op("TensorScatter")
def _tensor_scatter(n: Node) -> Value:
    """Writes what is new into a cache, from a place of each batch's own."""
    x, update, axis = n.x(0), n.x(1), n.axis(-2)
    length, rank = update.shape[axis], update.tensor.rank
    at = n.b.reshape(
        n.b.add(Iota(length=length)).y, [length if a == axis else 1 for a in range(rank)]
    )
    if n.has(2):
        first = n.b.cast(n.x(2), DType.I64)
        first = n.b.reshape(first, [first.shape[0] if a == 0 else 1 for a in range(rank)])
        at = n.b.add(p.Add(first, at)).y
    if n.attr("mode", "linear") == "circular":
        at = n.b.add(p.Remainder(at, n.full(x.shape[axis], DType.I64))).y
    return n.b.add(Scatter(x, n.b.expand(at, update.shape), update, axis=axis)).y


# -- sizes that only the data tells ---------------------------------------------------------


@onnx_op("NonZero", since=9)
def _non_zero(n: Node) -> Value:
    x = n.x()
    kind = TensorType(DType.I64, (n.fresh("nonzero"), x.tensor.rank))
    return n.b.permute(n.call("nonzero.default", x, kind=kind), (1, 0))


@onnx_op("Compress", since=11)
def _compress(n: Node) -> Value:
    x, axis = n.x(0), n.attr("axis")
    if axis is None:
        x, axis = n.b.reshape(x, (x.tensor.numel,)), 0
    axis = axis % x.tensor.rank
    elements = n.given(1).tensor
    if elements is not None:
        places = constant(n, torch.nonzero(elements).reshape(-1))
    else:
        kind = TensorType(DType.I64, (n.fresh("compress"), 1))
        found = n.call("nonzero.default", n.x(1), kind=kind)
        places = n.b.reshape(found, kind.shape[:1])
    return n.b.add(IndexSelect(x, places, axis=axis)).y


@onnx_op("Unique", since=11)
def _unique(n: Node) -> list[Any]:
    """In rising order: values, where each is first, which one each element is, and how often."""
    if not n.attr("sorted", 1):
        raise Unsupported("unique elements in the order that they come in")
    x, axis = n.x(), n.attr("axis")
    if axis is None:
        x, axis = n.b.reshape(x, (x.tensor.numel,)), 0
    axis = axis % x.tensor.rank
    size = n.fresh("unique")
    shape = [size if a == axis else e for a, e in enumerate(x.shape)]
    counted = TensorType(DType.I64, (size,))
    kinds = (x.tensor.with_shape(shape), TensorType(DType.I64, (x.shape[axis],)), counted)
    values, inverse, counts = n.calls("unique_dim.default", x, axis, True, True, True, kinds=kinds)
    first: Value | None = None
    if n.wants(1):
        at = n.b.add(Iota(length=x.shape[axis])).y
        last = n.b.full(x.shape[axis], DType.I64, (size,))
        first = n.call("scatter_reduce.two", last, 0, inverse, at, "amin", kind=counted)
    return [values, first, inverse, counts]


__all__ = ["from_front"]
