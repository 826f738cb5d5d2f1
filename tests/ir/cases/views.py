"""Cases of ops that make values of nothing, and of views."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fuseline.ir.core import Op, Value
from fuseline.ir.types import DType, dim
from tests.ir.cases.base import ALL, EXTENTS, FLOATS, NUMBERS, Case, case


@case("full")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape()
    c.arg(DType.F32, sizes)  # binds the symbols
    value = c.one_of([True, 3, -1, 0.5, 1e-6, float("inf"), float("-inf"), *c.dims(sizes)])
    dtype = c.one_of(FLOATS if isinstance(value, float) else ALL)
    return op(value=value, shape=c.dims(sizes), dtype=dtype)


@case("iota")
def _(c: Case, op: type[Any]) -> Op:
    size = c.one_of(EXTENTS)
    c.arg(DType.F32, [size])
    dtype = c.one_of([DType.I64, DType.I32, DType.F32, DType.F64])
    start = c.one_of([0, 3, c.dim(size)])
    return op(length=c.dim(size), start=start, step=c.one_of([1, 2, -1]), dtype=dtype)


@case("reshape")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    x = c.arg(c.one_of(ALL), sizes)
    dims = list(x.shape)
    at = c.number(0, len(dims) - 1)
    choice = c.number(0, 2)
    if choice == 0:
        return op(x, shape=[*dims[:at], 1, *dims[at:]])
    if choice == 1:
        return op(x, shape=[x.tensor.numel])
    return op(x, shape=[*dims[:at], dim(dims[at] * 1), *dims[at + 1 :]])


@case("permute")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(ALL), c.shape(1, 4))
    return op(x, dims=c.draw(st.permutations(range(x.tensor.rank))))


@case("expand")
def _(c: Case, op: type[Any]) -> Op:
    full = c.shape(1)
    start = c.number(0, len(full))
    sizes = [1 if c.flag() else e for e in full[start:]]
    shape = c.dims(full)
    c.arg(DType.F32, full)  # binds the symbols
    return op(c.arg(c.one_of(ALL), sizes), shape=shape)


@case("slice")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    start = c.number(0, sizes[axis])
    stop = c.number(start, sizes[axis])
    x = c.arg(c.one_of(ALL), sizes)
    if c.flag():
        return op(x, axis=axis, start=start, stop=stop, step=c.number(1, 3))
    return op(x, axis=axis, start=min(start, 1), stop=x.shape[axis])


@case("concat")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    parts: list[Value] = []
    for _ in range(c.number(1, 3)):
        own = [*sizes[:axis], c.one_of(EXTENTS), *sizes[axis + 1 :]]
        parts.append(c.arg(c.one_of(ALL), own))
    return op(parts, axis=axis)


@case("pad")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(NUMBERS), c.shape(1))
    axis = c.number(0, x.tensor.rank - 1)
    return op(x, axis=axis, before=c.number(0, 2), after=c.number(0, 2), value=c.one_of([0.0, 2.0]))
