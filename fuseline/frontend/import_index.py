"""Imports gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuseline.frontend.builder import Builder, Scalar, axis_of, imports
from fuseline.frontend.import_view import place_in, slice_start
from fuseline.ir.core import Value
from fuseline.ir.ops import index as i
from fuseline.ir.types import DType, dim


@imports("aten.embedding.default")
def _embedding(b: Builder, weight: Value, indices: Value, *options: Any, **named: Any) -> Value:
    return b.add(i.Embedding(weight, indices)).y


def _axes(indices: Sequence[Value | None]) -> tuple[list[Value], tuple[int, ...]] | None:
    """The index operands and their axes; None for a mask, which selects as data tells."""
    present = [(axis, v) for axis, v in enumerate(indices) if v is not None]
    if not present or any(v.dtype in (DType.BOOL, DType.U8) for _, v in present):
        return None
    return [v for _, v in present], tuple(axis for axis, _ in present)


@imports("aten.index.Tensor")
def _index(b: Builder, x: Value, indices: Sequence[Value | None]) -> Any:
    found = _axes(indices)
    return NotImplemented if found is None else b.add(i.Index(x, tuple(found[0]), axes=found[1])).y


@imports("aten.index_put.default")
def _index_put(
    b: Builder,
    x: Value,
    indices: Sequence[Value | None],
    src: Value,
    accumulate: bool = False,
) -> Any:
    found = _axes(indices)
    if found is None:
        return NotImplemented
    return b.add(i.IndexPut(x, tuple(found[0]), src, axes=found[1], accumulate=accumulate)).y


@imports("aten.index_select.default")
def _index_select(b: Builder, x: Value, axis: int, index: Value) -> Any:
    if not x.tensor.rank:
        return NotImplemented
    return b.add(i.IndexSelect(x, index, axis=axis_of(axis, x.tensor.rank))).y


@imports("aten.index_copy.default")
def _index_copy(b: Builder, x: Value, axis: int, index: Value, src: Value) -> Any:
    if not x.tensor.rank or src.tensor.rank != x.tensor.rank:
        return NotImplemented
    return b.add(i.IndexCopy(x, index, src, axis=axis_of(axis, x.tensor.rank))).y


@imports("aten.gather.default")
def _gather(b: Builder, x: Value, axis: int, index: Value, sparse_grad: bool = False) -> Any:
    if not x.tensor.rank or not index.tensor.rank:
        return NotImplemented
    return b.add(i.Gather(x, index, axis=axis_of(axis, x.tensor.rank))).y


@imports("aten.scatter.src", "aten.scatter.value")
def _scatter(b: Builder, x: Value, axis: int, index: Value, src: Value | Scalar) -> Any:
    if not x.tensor.rank or (isinstance(src, Value) and src.shape != index.shape):
        return NotImplemented
    value = src if isinstance(src, Value) else b.full(src, x.dtype)
    return b.add(i.Scatter(x, index, value, axis=axis_of(axis, x.tensor.rank))).y


@imports("aten.slice_scatter.default")
def _slice_scatter(
    b: Builder,
    x: Value,
    src: Value,
    axis: int = 0,
    start: Any = None,
    stop: Any = None,
    step: int = 1,
) -> Any:
    axis = axis_of(axis, x.tensor.rank)
    extent, size = x.shape[axis], src.shape[axis]
    first = slice_start(b, start, stop, extent, size, step)
    if first is None or (step != 1 and not isinstance(size, int)):
        return NotImplemented
    last = dim(first + (size - 1) * step + 1)
    src = b.cast(src, x.dtype)
    if size == extent and step == 1:
        return b.expand(src, x.shape)
    return b.add(i.SliceScatter(x, src, axis=axis, start=first, stop=last, step=step)).y


@imports("aten.select_scatter.default")
def _select_scatter(b: Builder, x: Value, src: Value, axis: int, index: Any) -> Any:
    axis = axis_of(axis, x.tensor.rank)
    place = place_in(b, index, x.shape[axis])
    if place is None:
        return NotImplemented
    row = b.reshape(b.cast(src, x.dtype), (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return b.add(i.SliceScatter(x, row, axis=axis, start=place, stop=dim(place + 1))).y
