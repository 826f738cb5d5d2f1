"""Imports ATen ops that make tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuseline.frontend.builder import Builder, Scalar, imports
from fuseline.ir.core import Value
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.pointwise import Ge, Le, Where
from fuseline.ir.types import Dim, DType


@imports("aten.full.default")
def _full(b: Builder, size: Sequence[Dim], value: Scalar, **options: Any) -> Value:
    return b.full(value, b.expected[0].dtype, size)


@imports("aten.scalar_tensor.default")
def _scalar_tensor(b: Builder, value: Scalar, **options: Any) -> Value:
    return b.full(value, b.expected[0].dtype)


@imports("aten.zeros.default", "aten.empty.memory_format")
def _zeros(b: Builder, size: Sequence[Dim], **options: Any) -> Value:
    return b.full(0, b.expected[0].dtype, size)


@imports("aten.ones.default")
def _ones(b: Builder, size: Sequence[Dim], **options: Any) -> Value:
    return b.full(1, b.expected[0].dtype, size)


@imports("aten.zeros_like.default", "aten.empty_like.default", "aten.zero.default")
def _zeros_like(b: Builder, x: Value, **options: Any) -> Value:
    return b.full(0, b.expected[0].dtype, x.shape)


@imports("aten.ones_like.default")
def _ones_like(b: Builder, x: Value, **options: Any) -> Value:
    return b.full(1, b.expected[0].dtype, x.shape)


@imports("aten.full_like.default", "aten.fill.Scalar")
def _full_like(b: Builder, x: Value, value: Scalar, **options: Any) -> Value:
    return b.full(value, b.expected[0].dtype, x.shape)


@imports("aten.fill.Tensor")
def _fill(b: Builder, x: Value, value: Value) -> Value:
    return b.expand(b.cast(value, x.dtype), x.shape)


@imports("aten.new_zeros.default", "aten.new_empty.default")
def _new_zeros(b: Builder, x: Value, size: Sequence[Dim], **options: Any) -> Value:
    return b.full(0, b.expected[0].dtype, size)


@imports("aten.new_ones.default")
def _new_ones(b: Builder, x: Value, size: Sequence[Dim], **options: Any) -> Value:
    return b.full(1, b.expected[0].dtype, size)


@imports("aten.new_full.default")
def _new_full(b: Builder, x: Value, size: Sequence[Dim], value: Scalar, **options: Any) -> Value:
    return b.full(value, b.expected[0].dtype, size)


@imports("aten.arange.default")
def _arange(b: Builder, end: Any, **options: Any) -> Any:
    return _arange_step(b, 0, end, 1, **options)


@imports("aten.arange.start")
def _arange_start(b: Builder, start: Any, end: Any, **options: Any) -> Any:
    return _arange_step(b, start, end, 1, **options)


@imports("aten.arange.start_step")
def _arange_step(b: Builder, start: Any, end: Any, step: Any = 1, **options: Any) -> Any:
    kind = b.expected[0]
    whole = not any(isinstance(v, float) for v in (start, end, step))
    if not whole and kind.dtype is not DType.F32:
        return NotImplemented
    return b.add(Iota(length=kind.shape[0], start=start, step=step, dtype=kind.dtype)).y


@imports("aten.tril.default")
def _tril(b: Builder, x: Value, diagonal: int = 0) -> Value:
    return _triangle(b, Le, x, diagonal)


@imports("aten.triu.default")
def _triu(b: Builder, x: Value, diagonal: int = 0) -> Value:
    return _triangle(b, Ge, x, diagonal)


def _triangle(b: Builder, keep: type[Le | Ge], x: Value, diagonal: int) -> Value:
    rows, columns = x.shape[-2:]
    row = b.add(Iota(length=rows, start=diagonal, dtype=DType.I64)).y
    column = b.add(Iota(length=columns, dtype=DType.I64)).y
    kept = b.add(keep(column, b.reshape(row, (rows, 1)))).y
    return b.add(Where(kept, x, b.full(0, x.dtype))).y
