"""Reductions, scans, selection and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fuseline.frontend.builder import axis_of
from fuseline.frontend.onnx.elementwise import mul, sub
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import onnx_op
from fuseline.ir.core import Trait, Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops import reduce as r
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.index import Gather
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.ops.view import Concat, Reshape
from fuseline.ir.types import Dim, DType, TensorType, same


def _axes(n: Node) -> tuple[int, ...] | None:
    """The axes of a reduction, rising; None for one that does nothing."""
    rank = n.x(0).tensor.rank
    axes = n.axes(1, rank)
    if axes:
        return tuple(sorted(axes))
    return None if n.attr("noop_with_empty_axes", 0) else tuple(range(rank))


def total(n: Node, x: Value, axes: Sequence[int], *, keep: bool = True) -> Value:
    """The sum over axes, in x's type."""
    y = n.b.add(r.Sum(x, axes=tuple(axes), keepdim=keep)).y
    return n.b.cast(y, x.dtype)


def _reduced(n: Node, x: Value, axes: tuple[int, ...], kind: type[r.Reduce]) -> Value:
    return n.b.add(kind(x, axes=axes, keepdim=bool(n.attr("keepdims", 1)))).y


def _is_empty(x: Value, axes: Sequence[int]) -> bool:
    return any(same(x.shape[a], 0) for a in axes)


def _kept(n: Node, x: Value, axes: Sequence[int]) -> list[Dim]:
    keep = bool(n.attr("keepdims", 1))
    return [1 if a in axes else d for a, d in enumerate(x.shape) if a not in axes or keep]


@onnx_op("ReduceSum")
def _reduce_sum(n: Node) -> Value:
    axes = _axes(n)
    return n.x() if axes is None else total(n, n.x(), axes, keep=bool(n.attr("keepdims", 1)))


@onnx_op("ReduceMean")
def _reduce_mean(n: Node) -> Value:
    x, axes = n.x(), _axes(n)
    if axes is None or x.dtype.is_float:
        return x if axes is None else _reduced(n, x, axes, r.Mean)
    wide = _reduced(n, n.b.cast(x, DType.F32), axes, r.Mean)
    return n.b.cast(n.call("trunc.default", wide, kind=wide.tensor), x.dtype)


def _lowest(dtype: DType) -> float | int | bool:
    if dtype.is_float:
        return -math.inf
    return 0 if dtype in (DType.U8, DType.BOOL) else -(2 ** (8 * dtype.itemsize - 1))


def _highest(dtype: DType) -> float | int | bool:
    if dtype.is_float:
        return math.inf
    if dtype in (DType.U8, DType.BOOL):
        return 255 if dtype is DType.U8 else True
    return 2 ** (8 * dtype.itemsize - 1) - 1


@onnx_op("ReduceMax")
def _reduce_max(n: Node) -> Value:
    return _extreme(n, r.Amax, r.Any, _lowest)


@onnx_op("ReduceMin")
def _reduce_min(n: Node) -> Value:
    return _extreme(n, r.Amin, r.All, _highest)


def _extreme(n: Node, kind: type[r.Reduce], of_bools: type[r.Reduce], of_none: Any) -> Value:
    x, axes = n.x(), _axes(n)
    if axes is None:
        return x
    if _is_empty(x, axes):
        return n.b.full(of_none(x.dtype), x.dtype, _kept(n, x, axes))
    return _reduced(n, x, axes, of_bools if x.dtype is DType.BOOL else kind)


@onnx_op("ReduceProd")
def _reduce_prod(n: Node) -> Value:
    x, axes = n.x(), _axes(n)
    for axis in sorted(axes or (), reverse=True):
        keep = bool(n.attr("keepdims", 1))
        shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]
        x = n.call("prod.dim_int", x, axis, keep, dtype=x.dtype, kind=x.tensor.with_shape(shape))
    return x


@onnx_op("ReduceL1")
def _reduce_l1(n: Node) -> Value:
    return _sum_of(n, n.b.add(p.Abs(n.x())).y)


@onnx_op("ReduceL2")
def _reduce_l2(n: Node) -> Value:
    x = n.x()
    wide = x if x.dtype.is_float else n.b.cast(x, DType.F32)
    return n.b.cast(n.b.add(p.Sqrt(_sum_of(n, mul(n, wide, wide)))).y, x.dtype)


@onnx_op("ReduceSumSquare")
def _reduce_sum_square(n: Node) -> Value:
    return _sum_of(n, mul(n, n.x(), n.x()))


@onnx_op("ReduceLogSum")
def _reduce_log_sum(n: Node) -> Value:
    return n.b.cast(n.b.add(p.Log(_sum_of(n, n.x()))).y, n.x().dtype)


@onnx_op("ReduceLogSumExp")
def _reduce_log_sum_exp(n: Node) -> Value:
    x, axes = n.x(), _axes(n)
    if axes is None:
        return x
    shape = _kept(n, x, axes)
    if _is_empty(x, axes):
        return n.b.full(-math.inf, x.dtype, shape)
    keep = bool(n.attr("keepdims", 1))
    return n.call("logsumexp.default", x, list(axes), keep, kind=x.tensor.with_shape(shape))


def _sum_of(n: Node, x: Value) -> Value:
    axes = _axes(n)
    return x if axes is None else total(n, x, axes, keep=bool(n.attr("keepdims", 1)))


# -- selection ------------------------------------------------------------------------------


@onnx_op("ArgMax", "ArgMin")
def _arg(n: Node) -> Value:
    """The first of equal elements, or the last: then of the elements in reverse."""
    x, axis, keep = n.x(), n.axis(0), bool(n.attr("keepdims", 1))
    last = bool(n.attr("select_last_index", 0))
    if last:
        x = n.call("flip.default", x, [axis], kind=x.tensor)
    if n.op == "ArgMax":
        y = n.b.add(r.Argmax(x, axis=axis, keepdim=keep)).y
    else:
        shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]
        y = n.call("argmin.default", x, axis, keep, kind=TensorType(DType.I64, tuple(shape)))
    if not last:
        return y
    return n.b.add(p.Sub(n.full(x.shape[axis] - 1, DType.I64), y)).y


@onnx_op("TopK", since=11)
def _topk(n: Node) -> tuple[Value, Value]:
    """Of equal elements the first ones: so by a stable sort, but for scores that a product gives:
    of these, equal ones are a coincidence, and models of torch do not tell which they take.
    """
    x, axis = n.x(), n.axis(-1)
    k = n.dims(1)[0]
    if x.dtype.is_float and _is_score(x):
        top = n.b.add(r.TopK(x, k=k, axis=axis, largest=bool(n.attr("largest", 1))))
        return top.values, top.indices
    found = n.b.add(r.Sort(x, axis=axis, descending=bool(n.attr("largest", 1))))
    return n.b.slice(found.values, axis, 0, k), n.b.slice(found.indices, axis, 0, k)


def _is_score(value: Value, depth: int = 8) -> bool:
    """Whether a value is a product, or is computed from one element by element or by a softmax."""
    op = value.owner
    if op is None or not depth:
        return False
    if isinstance(op, (Linear, Matmul)):
        return True
    if isinstance(op, (r.Softmax, Reshape)) or op.has(Trait.POINTWISE):
        return any(_is_score(v, depth - 1) for v in op.operands)
    return False


@onnx_op("Hardmax", since=13)
def _hardmax(n: Node) -> Value:
    x, axis = n.x(), n.axis(-1)
    best = n.b.add(r.Argmax(x, axis=axis, keepdim=True)).y
    return n.b.cast(n.b.add(p.Eq(along(n, x, axis), best)).y, x.dtype)


def along(n: Node, x: Value, axis: int) -> Value:
    """0, 1, ... along an axis of x, to be broadcast against it."""
    size = x.shape[axis]
    shape = [size if a == axis else 1 for a in range(x.tensor.rank)]
    return n.b.reshape(n.b.add(Iota(length=size)).y, shape)


# -- scans ----------------------------------------------------------------------------------


@onnx_op("CumSum", since=11)
def _cumsum(n: Node) -> Value:
    def step(x: Value, axis: int) -> Value:
        return n.b.cast(n.b.add(r.Cumsum(x, axis=axis)).y, x.dtype)

    return _scan(n, step, 0)


@onnx_op("CumProd")
def _cumprod(n: Node) -> Value:
    def step(x: Value, axis: int) -> Value:
        return n.call("cumprod.default", x, axis, dtype=x.dtype, kind=x.tensor)

    return _scan(n, step, 1)


def _scan(n: Node, step: Callable[[Value, int], Value], start: int) -> Value:
    x = n.x()
    axis = axis_of(n.ints(1)[0], x.tensor.rank)
    reverse = bool(n.attr("reverse", 0))
    if reverse:
        x = n.call("flip.default", x, [axis], kind=x.tensor)
    if n.attr("exclusive", 0):
        shape = [1 if a == axis else d for a, d in enumerate(x.shape)]
        size = x.shape[axis]
        first = n.b.full(start, x.dtype, shape)
        before = n.b.slice(x, axis, 0, size - 1)
        x = n.b.add(Concat((first, before), axis=axis)).y
    y = step(x, axis)
    return n.call("flip.default", y, [axis], kind=y.tensor) if reverse else y


# -- softmax and norms of vectors -----------------------------------------------------------


@onnx_op("Softmax", since=13)
def _softmax(n: Node) -> Value:
    return n.b.add(r.Softmax(n.x(), axis=n.axis(-1))).y


@onnx_op("LogSoftmax", since=13)
def _log_softmax(n: Node) -> Value:
    x, axis = n.x(), n.axis(-1)
    wide = x if x.dtype is DType.F64 else n.b.cast(x, DType.F32)
    low = sub(n, wide, n.b.add(r.Amax(wide, axes=(axis,), keepdim=True)).y)
    sums = n.b.add(r.Sum(n.b.add(p.Exp(low)).y, axes=(axis,), keepdim=True)).y
    return n.b.cast(sub(n, low, n.b.add(p.Log(sums)).y), x.dtype)


@onnx_op("LpNormalization")
def _lp_normalization(n: Node) -> Value:
    """Rows of zeros stay so."""
    x, axis, power = n.x(), n.axis(-1), n.attr("p", 2)
    if power == 1:
        size = total(n, n.b.add(p.Abs(x)).y, [axis])
    else:
        size = n.b.add(p.Sqrt(total(n, mul(n, x, x), [axis]))).y
    zero = n.full(0, x)
    empty = n.b.add(p.Eq(size, zero)).y
    return n.b.add(p.Where(empty, zero, n.b.add(p.Div(x, size)).y)).y


def gather_along(n: Node, x: Value, index: Value, axis: int) -> Value:
    """``x[i][index[i][j]]``; negative indices count from the end."""
    index = n.b.cast(index, DType.I64)
    size = n.full(x.shape[axis], DType.I64)
    below = n.b.add(p.Lt(index, n.full(0, DType.I64))).y
    index = n.b.add(p.Where(below, n.b.add(p.Add(index, size)).y, index)).y
    return n.b.add(Gather(x, index, axis=axis)).y


__all__ = ["along", "gather_along", "total"]
