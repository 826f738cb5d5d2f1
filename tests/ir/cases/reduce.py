"""Cases of reductions, scans and selections."""

from __future__ import annotations

from typing import Any

from fuseline.ir.core import Op
from tests.ir.cases.base import ALL, FLOATS, NUMBERS, Case, case


@case("sum", "mean", "amax", "amin", "any", "all")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(FLOATS if op.name == "mean" else ALL), c.shape(1))
    return op(x, axes=c.axes(x.tensor.rank), keepdim=c.flag())


@case("argmax")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(NUMBERS), c.shape(1))
    return op(x, axis=c.number(0, x.tensor.rank - 1), keepdim=c.flag())


@case("cumsum", "softmax")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(ALL if op.name == "cumsum" else FLOATS), c.shape(1))
    return op(x, axis=c.number(0, x.tensor.rank - 1))


@case("topk")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    x = c.arg(c.one_of(NUMBERS), sizes)
    return op(x, k=c.number(1, sizes[axis]), axis=axis, largest=c.flag())


@case("sort")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(ALL), c.shape(1))
    return op(x, axis=c.number(0, x.tensor.rank - 1), descending=c.flag())
