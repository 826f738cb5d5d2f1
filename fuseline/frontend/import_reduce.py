"""Imports reductions, scans, softmax, selection and sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fuseline.frontend.builder import Builder, axes_of, axis_of, dtype_of, imports
from fuseline.ir.core import Value
from fuseline.ir.ops import reduce as r
from fuseline.ir.types import Dim

Axes = int | Sequence[int] | None


@imports("aten.sum.dim_IntList", "aten.sum.default")
def _sum(
    b: Builder,
    x: Value,
    axes: Axes = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:
    x = b.cast(x, dtype_of(dtype, x.dtype))
    return _reduce(b, r.Sum, x, axes, keepdim)


@imports("aten.mean.dim", "aten.mean.default")
def _mean(
    b: Builder,
    x: Value,
    axes: Axes = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:
    x = b.cast(x, dtype_of(dtype, x.dtype))
    return _reduce(b, r.Mean, x, axes, keepdim)


@imports("aten.amax.default", "aten.max.default")
def _amax(b: Builder, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(b, r.Amax, x, axes, keepdim)


@imports("aten.amin.default", "aten.min.default")
def _amin(b: Builder, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(b, r.Amin, x, axes, keepdim)


@imports("aten.any.default", "aten.any.dim", "aten.any.dims")
def _any(b: Builder, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(b, r.Any, x, axes, keepdim)


@imports("aten.all.default", "aten.all.dim", "aten.all.dims")
def _all(b: Builder, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(b, r.All, x, axes, keepdim)


def _reduce(b: Builder, kind: type[r.Reduce], x: Value, axes: Axes, keepdim: bool) -> Value:
    if not x.tensor.rank:
        return b.reshape(b.add(kind(b.reshape(x, (1,)), axes=(0,), keepdim=False)).y, ())
    return b.add(kind(x, axes=axes_of(axes, x.tensor.rank), keepdim=keepdim)).y


@imports("aten.max.dim")
def _max(b: Builder, x: Value, axis: int, keepdim: bool = False) -> Any:
    """Value and index; among equal values torch does not say which index it takes."""
    if not x.tensor.rank:
        return NotImplemented
    axis = axis_of(axis, x.tensor.rank)
    values = b.add(r.Amax(x, axes=(axis,), keepdim=keepdim)).y
    return values, b.add(r.Argmax(x, axis=axis, keepdim=keepdim)).y


@imports("aten.argmax.default")
def _argmax(b: Builder, x: Value, axis: int | None = None, keepdim: bool = False) -> Any:
    if not x.tensor.rank or (axis is None and keepdim):
        return NotImplemented
    if axis is None:
        x, axis = b.reshape(x, (x.tensor.numel,)), 0
    return b.add(r.Argmax(x, axis=axis_of(axis, x.tensor.rank), keepdim=keepdim)).y


@imports("aten.cumsum.default")
def _cumsum(b: Builder, x: Value, axis: int, dtype: torch.dtype | None = None) -> Any:
    if not x.tensor.rank:
        return NotImplemented
    x = b.cast(x, dtype_of(dtype, x.dtype))
    return b.cast(b.add(r.Cumsum(x, axis=axis_of(axis, x.tensor.rank))).y, b.expected[0].dtype)


@imports("aten.softmax.int")
def _softmax(b: Builder, x: Value, axis: int, dtype: torch.dtype | None = None) -> Any:
    if not x.tensor.rank:
        return NotImplemented
    x = b.cast(x, dtype_of(dtype, x.dtype))
    return b.add(r.Softmax(x, axis=axis_of(axis, x.tensor.rank))).y


@imports("aten._softmax.default")
def _plain_softmax(b: Builder, x: Value, axis: int, half_to_float: bool) -> Any:
    return _softmax(b, x, axis, torch.float32 if half_to_float else None)


@imports("aten.topk.default")
def _topk(
    b: Builder, x: Value, k: Dim, axis: int = -1, largest: bool = True, ordered: bool = True
) -> Any:
    if not x.tensor.rank:
        return NotImplemented
    axis = axis_of(axis, x.tensor.rank)
    op = b.add(r.TopK(x, k=k, axis=axis, largest=largest, ordered=ordered))
    return op.values, op.indices


@imports("aten.sort.stable")
def _stable_sort(
    b: Builder, x: Value, stable: bool | None = True, dim: int = -1, descending: bool = False
) -> Any:
    return _sort(b, x, dim, descending)


@imports("aten.sort.default")
def _sort(b: Builder, x: Value, axis: int = -1, descending: bool = False) -> Any:
    """A stable sort serves for one that need not be."""
    if not x.tensor.rank:
        return NotImplemented
    op = b.add(r.Sort(x, axis=axis_of(axis, x.tensor.rank), descending=descending))
    return op.values, op.indices
