"""Operators that make tensors: constants, ranges, sizes."""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch
from torch import Tensor

from fuseline.frontend.onnx.data import dtype_of
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Iota
from fuseline.ir.types import Dim, DType, TensorType, dim, floor_div


@onnx_op("Constant")
def _constant(n: Node) -> Tensor:
    kinds = {"value_int": torch.int64, "value_ints": torch.int64, "value_float": torch.float32}
    kinds["value_floats"] = torch.float32
    if n.attr("value") is not None:
        return n.attr("value")
    for name, dtype in kinds.items():
        if name in n.attributes:
            return torch.tensor(n.attr(name), dtype=dtype)
    raise Unsupported(f"a constant given by {', '.join(n.attributes) or 'nothing'}")


@onnx_op("ConstantOfShape")
def _constant_of_shape(n: Node) -> Value:
    value = n.attr("value")
    value = torch.zeros(1) if value is None else value
    return n.b.full(value.item(), DType.from_torch(value.dtype), n.dims(0))


@onnx_op("Shape")
def _shape(n: Node) -> Value:
    raise Unsupported("the shape of this value")  # the rules of shape arithmetic know all others


@onnx_op("Range", since=11)
def _range(n: Node) -> Value:
    start, stop, step = (n.number(i) for i in range(3))
    dtype = n.given(0).type.dtype
    if not isinstance(step, (int, float)) or step == 0:
        raise Unsupported(f"a step of {step}")
    if all(isinstance(v, (int, float)) for v in (start, stop)):
        length: Dim = max(math.ceil((stop - start) / step), 0)
    else:
        extent: Any = dim(stop - start) if step > 0 else dim(start - stop)
        size = int(abs(step))
        if size != abs(step):
            raise Unsupported(f"a step of {step} between sizes")
        length = extent if size == 1 else dim(-floor_div(dim(-extent), size))
        if not n.b.is_nonnegative(length):
            length = dim(sympy.Max(length, 0))
    return n.b.add(Iota(length=length, start=start, step=step, dtype=dtype)).y


@onnx_op("EyeLike")
def _eye_like(n: Node) -> Value:
    x = n.given(0).type
    dtype = x.dtype if n.attr("dtype") is None else dtype_of(n.attr("dtype"))
    rows, columns = x.shape
    row = n.b.reshape(n.b.add(Iota(length=rows, start=n.attr("k", 0))).y, (rows, 1))
    column = n.b.add(Iota(length=columns)).y
    return n.b.cast(n.b.add(p.Eq(row, column)).y, dtype)


@onnx_op("RandomNormalLike", "RandomUniformLike")
def _random_like(n: Node) -> Value:
    x = n.given(0).type
    dtype = x.dtype if n.attr("dtype") is None else dtype_of(n.attr("dtype"))
    return _random(n, TensorType(dtype, x.shape), normal="Normal" in n.op)


@onnx_op("RandomNormal", "RandomUniform")
def _random_of_shape(n: Node) -> Value:
    kind = TensorType(dtype_of(n.attr("dtype", 1)), tuple(n.attr("shape")))
    return _random(n, kind, normal="Normal" in n.op)


def _random(n: Node, kind: TensorType, *, normal: bool) -> Value:
    """By torch's generator: a seed that the model gives is not followed."""
    name = "randn" if normal else "rand"
    y = n.call(f"{name}.default", kind.shape, dtype=kind.dtype, kind=kind)
    if normal:
        scale, shift = n.attr("scale", 1.0), n.attr("mean", 0.0)
    else:
        shift = n.attr("low", 0.0)
        scale = n.attr("high", 1.0) - shift
    y = n.b.add(p.Mul(y, n.full(scale, y))).y
    return n.b.add(p.Add(y, n.full(shift, y))).y


@onnx_op("Bernoulli")
def _bernoulli(n: Node) -> Value:
    x = n.x()
    dtype = x.dtype if n.attr("dtype") is None else dtype_of(n.attr("dtype"))
    y = n.call("bernoulli.default", x, kind=x.tensor)
    return n.b.cast(y, dtype)


@onnx_op("OptionalHasElement")
def _optional_has_element(n: Node) -> Tensor:
    """A tensor is there or not; other optional values are refused where they come in."""
    return torch.tensor(n.has(0))


@onnx_op("OptionalGetElement")
def _optional_get_element(n: Node) -> Value:
    return n.x()
