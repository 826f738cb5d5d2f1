"""Normalizations."""

from __future__ import annotations

from typing import Any

from fuseline.frontend.onnx.elementwise import add, mul, sub
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import onnx_op
from fuseline.frontend.onnx.view import pad_axis
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.ops.reduce import Mean
from fuseline.ir.types import DType, product, same


def _rows(n: Node, x: Value) -> tuple[Value, int]:
    """x with the dims that are normalized as one, and how many these are."""
    axis = n.axis(-1)
    count = x.tensor.rank - axis
    return n.b.reshape(x, (*x.shape[:axis], product(x.shape[axis:]))), count


def _row_of(n: Node, weight: Value | None, x: Value, count: int) -> Value | None:
    """A scale or bias as one for each element of a row; None where it is not that."""
    if weight is None:
        return None
    want = x.shape[x.tensor.rank - count :]
    have = (1,) * (count - weight.tensor.rank) + weight.shape
    if len(have) == count and all(map(same, have, want)):
        return n.b.reshape(weight, (product(want),))
    if weight.tensor.rank > count or not all(
        isinstance(h, int) and (h == 1 or same(h, w)) for h, w in zip(have, want, strict=True)
    ):
        return None
    wide = n.b.expand(n.b.reshape(weight, have), want)
    return n.b.reshape(wide, (product(want),))


@onnx_op("LayerNormalization")
def _layer_norm(n: Node) -> list[Value | None]:
    """The normalized row is rounded to x's type, then scaled."""
    x, scale, bias = n.x(0), n.x(1), n.opt(2)
    rows, count = _rows(n, x)
    eps = n.attr("epsilon", 1e-5)
    weight, shift = _row_of(n, scale, x, count), _row_of(n, bias, x, count)
    wide = rows.dtype in (DType.F32, DType.F64)
    if weight is not None and (bias is None) == (shift is None):
        cast: Any = "last" if wide else "before_weight"
        y = n.b.reshape(n.b.add(LayerNorm(rows, weight, shift, eps=eps, cast=cast)).y, x.shape)
    else:
        y = n.b.reshape(n.b.add(LayerNorm(rows, None, None, eps=eps)).y, x.shape)
        y = n.b.add(p.Mul(y, scale)).y
        y = y if bias is None else n.b.add(p.Add(y, bias)).y
    found: list[Value | None] = [n.b.cast(y, x.dtype)]
    if len(n.wanted) > 1:
        found += _statistics(n, rows, count, x, eps)
    return found


def _statistics(n: Node, rows: Value, count: int, x: Value, eps: float) -> list[Value | None]:
    wide = n.b.cast(rows, DType.F32)
    axis = rows.tensor.rank - 1
    mean = n.b.add(Mean(wide, axes=(axis,), keepdim=True)).y
    apart = sub(n, wide, mean)
    variance = n.b.add(Mean(mul(n, apart, apart), axes=(axis,), keepdim=True)).y
    root = n.b.add(p.Rsqrt(add(n, variance, eps))).y
    shape = (*x.shape[: x.tensor.rank - count], *(1,) * count)
    return [n.b.reshape(mean, shape), n.b.reshape(root, shape)]


@onnx_op("RMSNormalization")
def _rms_norm(n: Node) -> Value:
    x, scale = n.x(0), n.x(1)
    rows, count = _rows(n, x)
    eps, weight = n.attr("epsilon", 1e-5), _row_of(n, scale, x, count)
    if weight is not None:
        y = n.b.reshape(n.b.add(RmsNorm(rows, weight, eps=eps)).y, x.shape)
    else:
        y = n.b.reshape(n.b.add(RmsNorm(rows, None, eps=eps)).y, x.shape)
        y = n.b.add(p.Mul(y, scale)).y
    return n.b.cast(y, scale.dtype)


def _by_channel(n: Node, x: Value, weight: Value) -> Value:
    """One number a channel, to be broadcast against x ``[N, C, ...]``."""
    return n.b.reshape(weight, (1, weight.shape[0], *(1,) * (x.tensor.rank - 2)))


def _by_groups(n: Node, x: Value, groups: Any, eps: float) -> Value:
    rows = n.b.reshape(x, (x.shape[0], groups, product((*x.shape[1:],)) // groups))
    return n.b.reshape(n.b.add(LayerNorm(rows, None, None, eps=eps)).y, x.shape)


@onnx_op("InstanceNormalization")
def _instance_norm(n: Node) -> Value:
    x = n.x(0)
    rows = n.b.reshape(x, (*x.shape[:2], product(x.shape[2:])))
    normal = n.b.add(LayerNorm(rows, None, None, eps=n.attr("epsilon", 1e-5))).y
    y = mul(n, n.b.reshape(normal, x.shape), _by_channel(n, x, n.x(1)))
    return add(n, y, _by_channel(n, x, n.x(2)))


@onnx_op("GroupNormalization", since=21)
def _group_norm(n: Node) -> Value:
    x = n.x(0)
    y = _by_groups(n, x, n.attr("num_groups"), n.attr("epsilon", 1e-5))
    y = mul(n, y, _by_channel(n, x, n.x(1)))
    return add(n, y, _by_channel(n, x, n.x(2)))


@onnx_op("BatchNormalization", since=9)
def _batch_norm(n: Node) -> list[Value | None]:
    x, scale, bias, mean, variance = (n.x(i) for i in range(5))
    eps = n.attr("epsilon", 1e-5)
    found: list[Value | None] = []
    if n.attr("training_mode", 0):
        axes = tuple(a for a in range(x.tensor.rank) if a != 1)
        kept, gain = n.attr("momentum", 0.9), 1 - n.attr("momentum", 0.9)
        now = n.b.add(Mean(x, axes=axes)).y
        apart = sub(n, x, _by_channel(n, x, now))
        spread = n.b.add(Mean(mul(n, apart, apart), axes=axes)).y
        for old, new in ((mean, now), (variance, spread)):
            found.append(add(n, mul(n, old, kept), mul(n, new, gain)))
        mean, variance = now, spread
    root = n.b.add(p.Rsqrt(add(n, variance, eps))).y
    y = sub(n, x, _by_channel(n, x, mean))
    y = mul(n, y, _by_channel(n, x, n.b.add(p.Mul(root, scale)).y))
    return [n.b.cast(add(n, y, _by_channel(n, x, bias)), x.dtype), *found]


@onnx_op("LRN")
def _lrn(n: Node) -> Value:
    """Divides by the squares of the channels around each."""
    x, size = n.x(), n.attr("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = pad_axis(n, mul(n, x, x), 1, before, after)
    channels = x.shape[1]
    sums = n.b.slice(squares, 1, 0, channels)
    for start in range(1, size):
        sums = add(n, sums, n.b.slice(squares, 1, start, start + channels))
    scale = add(n, mul(n, sums, n.attr("alpha", 1e-4) / size), n.attr("bias", 1.0))
    power = n.b.add(p.Pow(scale, n.full(n.attr("beta", 0.75), scale))).y
    return n.b.add(p.Div(x, power)).y


@onnx_op("GlobalAveragePool")
def _global_average(n: Node) -> Value:
    x = n.x()
    return n.b.add(Mean(x, axes=tuple(range(2, x.tensor.rank)), keepdim=True)).y
