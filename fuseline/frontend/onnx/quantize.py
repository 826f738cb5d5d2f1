"""Quantized tensors, as the arithmetic on integers and floats that they stand for."""

from __future__ import annotations

from fuseline.frontend.builder import axis_of
from fuseline.frontend.onnx.data import dtype_of
from fuseline.frontend.onnx.elementwise import add, clamp, mul, sub
from fuseline.frontend.onnx.matmul import product_of
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.types import DType, dim

_LIMITS = {
    DType.U8: (0, 255),
    DType.I8: (-128, 127),
    DType.I16: (-(2**15), 2**15 - 1),
    DType.I32: (-(2**31), 2**31 - 1),
}


def _against(n: Node, scale: Value, x: Value, axis: int, block: int) -> Value:
    """A scale, or zero point, to be broadcast against x: one number, one an index of an axis, or
    one a block along it.
    """
    if block:
        size = x.shape[axis]
        rows = scale.shape[axis]
        apart = (*scale.shape[: axis + 1], 1, *scale.shape[axis + 1 :])
        wide = (*scale.shape[: axis + 1], block, *scale.shape[axis + 1 :])
        whole = (*scale.shape[:axis], dim(rows * block), *scale.shape[axis + 1 :])
        every = n.b.reshape(n.b.expand(n.b.reshape(scale, apart), wide), whole)
        return n.b.slice(every, axis, 0, size)
    if scale.tensor.rank == 1 and x.tensor.rank >= 1 and scale.shape[0] != 1:
        return n.b.reshape(
            scale, [scale.shape[0] if a == axis else 1 for a in range(x.tensor.rank)]
        )
    return n.b.reshape(scale, ()) if scale.tensor.numel == 1 else scale


def quantized(n: Node, x: Value, scale: Value, zero: Value | None, dtype: DType) -> Value:
    """``round(x / scale) + zero`` within the limits of an integer type."""
    if dtype not in _LIMITS:
        raise Unsupported(f"quantization to {dtype}")
    y = n.b.add(p.Div(x, scale)).y
    y = n.call("round.default", y, kind=y.tensor)
    y = n.b.cast(y, DType.F32) if y.dtype in (DType.F16, DType.BF16) else y
    if zero is not None:
        y = add(n, y, n.b.cast(zero, y.dtype))
    low, high = _LIMITS[dtype]
    return n.b.cast(clamp(n, y, low, high), dtype)


@onnx_op("QuantizeLinear")
def _quantize(n: Node) -> Value:
    x, scale, zero = n.x(0), n.x(1), n.opt(2)
    dtype = DType.U8 if zero is None else zero.dtype
    if zero is None and n.attr("output_dtype", 0):
        dtype = dtype_of(n.attr("output_dtype"))
    axis, block = axis_of(n.attr("axis", 1), x.tensor.rank), n.attr("block_size", 0)
    x = x if x.dtype.is_float else n.b.cast(x, scale.dtype)
    scale = _against(n, scale, x, axis, block)
    zero = None if zero is None else _against(n, zero, x, axis, block)
    return quantized(n, x, scale, zero, dtype)


@onnx_op("DequantizeLinear")
def _dequantize(n: Node) -> Value:
    x, scale, zero = n.x(0), n.x(1), n.opt(2)
    dtype = scale.dtype
    if n.attr("output_dtype", 0):
        dtype = dtype_of(n.attr("output_dtype"))
    axis, block = axis_of(n.attr("axis", 1), x.tensor.rank), n.attr("block_size", 0)
    wide = n.b.cast(x, DType.I32)
    if zero is not None:
        wide = sub(n, wide, n.b.cast(_against(n, zero, x, axis, block), DType.I32))
    y = mul(n, n.b.cast(wide, scale.dtype), _against(n, scale, x, axis, block))
    return n.b.cast(y, dtype)


@onnx_op("QLinearMatMul")
def _qlinear_matmul(n: Node) -> Value:
    """The products are summed exactly, in integers."""
    sides: list[Value] = []
    scales: list[Value] = []
    for first, row in ((0, True), (3, False)):
        x, scale, zero = (n.x(first + i) for i in range(3))
        point = n.b.cast(zero, DType.I32)
        if row and point.tensor.rank == 1 and point.shape[0] != 1:
            point, scale = n.unsqueeze(point, [1]), n.unsqueeze(scale, [1])
        sides.append(sub(n, n.b.cast(x, DType.I32), _single(n, point)))
        scales.append(_single(n, scale))
    sums = n.b.cast(product_of(n, *sides), DType.F32)
    scale = n.b.cast(mul(n, scales[0], scales[1]), DType.F32)
    out = n.b.cast(_single(n, n.x(6)), DType.F32)
    return quantized(n, mul(n, sums, scale), out, _single(n, n.x(7)), n.x(7).dtype)


def _single(n: Node, x: Value) -> Value:
    return n.b.reshape(x, ()) if x.tensor.numel == 1 else x


__all__ = ["quantized"]
