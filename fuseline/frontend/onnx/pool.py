"""Convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from fuseline.frontend.onnx.elementwise import mul, sub
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.quantize import quantized
from fuseline.frontend.onnx.reduce import total
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.frontend.onnx.view import constant, pad_axis
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.index import Scatter
from fuseline.ir.ops.reduce import Amax
from fuseline.ir.types import Dim, DType, TensorType, dim, floor_div, product


@dataclass(frozen=True)
class Window:
    """The attributes of a sliding window, one number a spatial axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]


def window_of(n: Node, kernel: Sequence[int], shape: Sequence[Dim]) -> Window:
    """The window of a convolution or pool, its padding worked out."""
    count = len(kernel)
    strides = list(n.attr("strides") or [1] * count)
    dilations = list(n.attr("dilations") or [1] * count)
    pads = list(n.attr("pads") or [0] * (2 * count))
    before, after = pads[:count], pads[count:]
    auto = n.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = list[int](), list[int]()
        for axis, (size, step) in enumerate(zip(shape, strides, strict=True)):
            if not isinstance(size, int):
                raise Unsupported(f"{auto} where sizes are not known")
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            whole = max((-(-size // step) - 1) * step + reach - size, 0)
            small = whole // 2
            before.append(small if auto == "SAME_UPPER" else whole - small)
            after.append(whole - before[-1])
    elif auto == "VALID":
        before, after = [0] * count, [0] * count
    return Window(list(kernel), strides, dilations, before, after)


def padded(n: Node, x: Value, before: Sequence[int], after: Sequence[int], value: Any = 0) -> Value:
    """x with its spatial axes padded."""
    for axis, (first, last) in enumerate(zip(before, after, strict=True)):
        x = pad_axis(n, x, axis + 2, first, last, value=value)
    return x


def extents(shape: Sequence[Dim], w: Window) -> list[Dim]:
    """How often the window fits, on what is padded already."""
    return [
        dim(floor_div(dim(size - d * (k - 1) - 1), s) + 1)
        for size, k, s, d in zip(shape, w.kernel, w.strides, w.dilations, strict=True)
    ]


# -- convolutions ---------------------------------------------------------------------------


def convolve(n: Node, x: Value, weight: Value, bias: Value | None, w: Window, groups: int) -> Value:
    """A convolution; padding that differs between both sides is added first."""
    pads = w.before
    if w.before != w.after:
        x, pads = padded(n, x, w.before, w.after), [0] * len(w.before)
    spatial = [dim(e + 2 * q) for e, q in zip(x.shape[2:], pads, strict=True)]
    shape = (x.shape[0], weight.shape[0], *extents(spatial, w))
    zeros = [0] * len(pads)
    return n.call(
        "convolution.default", x, weight, bias, w.strides, pads, w.dilations, False, zeros, groups,
        kind=x.tensor.with_shape(shape),
    )  # fmt: skip


def _window_of_weight(n: Node, x: Value, weight: Value) -> Window:
    kernel = weight.shape[2:]
    if not all(isinstance(k, int) for k in kernel):
        raise Unsupported(f"a kernel {weight.type}")
    return window_of(n, cast("Any", kernel), x.shape[2:])


@onnx_op("Conv", since=1)
def _conv(n: Node) -> Value:
    x, weight = n.x(0), n.x(1)
    w = _window_of_weight(n, x, weight)
    return convolve(n, x, weight, n.opt(2), w, n.attr("group", 1))


def _whole(n: Node, x: Value, weight: Value, w: Window) -> Value:
    """A convolution of integers, exact: in float64."""
    wide = (n.b.cast(x, DType.F64), n.b.cast(weight, DType.F64))
    return n.b.cast(convolve(n, *wide, None, w, n.attr("group", 1)), DType.I32)


def _less(n: Node, index: int, zero: int, axis: int) -> Value:
    """An integer operand less its zero point: one number, or one an index of an axis."""
    x = n.b.cast(n.x(index), DType.I32)
    if not n.has(zero):
        return x
    return sub(n, x, _along(n, n.b.cast(n.x(zero), DType.I32), x, axis))


def _along(n: Node, values: Value, x: Value, axis: int) -> Value:
    if values.tensor.numel == 1:
        return n.b.reshape(values, ())
    return n.b.reshape(values, [values.shape[0] if a == axis else 1 for a in range(x.tensor.rank)])


@onnx_op("ConvInteger")
def _conv_integer(n: Node) -> Value:
    w = _window_of_weight(n, n.x(0), n.x(1))
    return _whole(n, _less(n, 0, 2, 1), _less(n, 1, 3, 0), w)


@onnx_op("QLinearConv")
def _qlinear_conv(n: Node) -> Value:
    w = _window_of_weight(n, n.x(0), n.x(3))
    sums = _whole(n, _less(n, 0, 2, 1), _less(n, 3, 5, 0), w)
    if n.has(8):
        sums = n.b.add(p.Add(sums, _along(n, n.x(8), sums, 1))).y
    scale = mul(n, _along(n, n.x(1), sums, 1), _along(n, n.x(4), sums, 1))
    y = mul(n, n.b.cast(sums, DType.F32), scale)
    out, zero = (n.b.reshape(n.x(i), ()) for i in (6, 7))
    return quantized(n, y, out, zero, n.x(7).dtype)


@onnx_op("ConvTranspose", since=1)
def _conv_transpose(n: Node) -> Value:
    x, weight, groups = n.x(0), n.x(1), n.attr("group", 1)
    kernel = [int(cast("Any", k)) for k in weight.shape[2:]]
    count = len(kernel)
    strides = list(n.attr("strides") or [1] * count)
    dilations = list(n.attr("dilations") or [1] * count)
    extra = list(n.attr("output_padding") or [0] * count)
    pads = list(n.attr("pads") or [0] * (2 * count))
    whole = [
        dim((size - 1) * s + (k - 1) * d + 1)
        for size, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    before, after = _transpose_pads(n, whole, extra, pads, x.shape[2:], strides)
    shape = (x.shape[0], dim(weight.shape[1] * groups), *whole)
    y = n.call(
        "convolution.default", x, weight, n.opt(2), strides, [0] * count, dilations, True,
        [0] * count, groups, kind=x.tensor.with_shape(shape),
    )  # fmt: skip
    for axis in range(count):  # what lies behind the last window is the bias alone
        grow = max(extra[axis] - after[axis], 0)
        if grow and n.has(2):
            raise Unsupported("output padding beside a bias")
        y = pad_axis(n, y, axis + 2, -before[axis], grow - max(after[axis] - extra[axis], 0))
    return y


def _transpose_pads(
    n: Node,
    whole: Sequence[Dim],
    extra: Sequence[int],
    pads: Sequence[int],
    sizes: Sequence[Dim],
    strides: Sequence[int],
) -> tuple[list[int], list[int]]:
    """What is cut off before and behind; the latter less what the output padding adds."""
    count = len(whole)
    wanted: list[Any] | None = n.attr("output_shape")
    auto = n.attr("auto_pad", "NOTSET")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [dim(size * s) for size, s in zip(sizes, strides, strict=True)]
    if wanted is None:
        return list(pads[:count]), list(pads[count:])
    before: list[int] = []
    after: list[int] = []
    for axis in range(count):
        cut = dim(whole[axis] + extra[axis] - wanted[axis])
        if not isinstance(cut, int):
            raise Unsupported("an output shape where sizes are not known")
        small = cut // 2
        first = small if auto == "SAME_UPPER" else cut - small
        before.append(first)
        after.append(cut - first)
    return before, after


# -- pools ----------------------------------------------------------------------------------


def _pool_window(n: Node, x: Value) -> tuple[Window, list[int]]:
    """The window, and what ``ceil_mode`` adds behind: a last window starts within x and its
    padding before.
    """
    w = window_of(n, n.attr("kernel_shape"), x.shape[2:])
    more = [0] * len(w.kernel)
    if not n.attr("ceil_mode", 0):
        return w, more
    for axis, size in enumerate(x.shape[2:]):
        if not isinstance(size, int):
            raise Unsupported("ceil_mode where sizes are not known")
        reach = w.dilations[axis] * (w.kernel[axis] - 1) + 1
        room, step = size + w.before[axis] + w.after[axis] - reach, w.strides[axis]
        windows = -(-room // step) + 1
        if (windows - 1) * step >= size + w.before[axis]:
            windows -= 1
        more[axis] = max((windows - 1) * step - room, 0)
    return w, more


@onnx_op("MaxPool", since=8)
def _max_pool(n: Node) -> list[Value | None]:
    x = n.x()
    count = x.tensor.rank - 2
    if count not in (1, 2, 3):
        raise Unsupported(f"a pool over {count} axes")
    w, more = _pool_window(n, x)
    wide = x if x.dtype.is_float else n.b.cast(x, DType.F32)
    behind = [a + m for a, m in zip(w.after, more, strict=True)]
    ready = padded(n, wide, w.before, behind, -math.inf)
    lifted, kernel = ready, list(w.kernel)
    shape = (*x.shape[:2], *extents(ready.shape[2:], w))
    kinds = (ready.tensor.with_shape(shape), TensorType(DType.I64, shape))
    name = f"max_pool{count}d_with_indices.default" if count > 1 else "max_pool1d_with_indices"
    zeros = [0] * count
    if count == 1:  # as a plane of one row
        plane = (*ready.shape[:2], 1, ready.shape[2])
        lifted = n.b.reshape(ready, plane)
        flat = (*shape[:2], 1, shape[2])
        kinds = (ready.tensor.with_shape(flat), TensorType(DType.I64, flat))
        name, kernel, zeros = "max_pool2d_with_indices.default", [1, *w.kernel], [0, 0]
        strides, dilations = [1, *w.strides], [1, *w.dilations]
    else:
        strides, dilations = w.strides, w.dilations
    values, places = n.calls(name, lifted, kernel, strides, zeros, dilations, False, kinds=kinds)
    y = n.b.cast(n.b.reshape(values, shape), x.dtype)
    if not n.wants(1):
        return [y]
    return [y, _places(n, n.b.reshape(places, shape), x, ready, w)]


def _places(n: Node, places: Value, x: Value, ready: Value, w: Window) -> Value:
    """Where the largest elements are in all of x, from where they are in a padded plane."""
    sizes, rest = list(x.shape[2:]), places
    column_major = bool(n.attr("storage_order", 0))
    coordinates: list[Value] = []
    for axis in range(len(sizes) - 1, -1, -1):
        extent = n.full(ready.shape[axis + 2], DType.I64)
        at = n.b.add(p.Remainder(rest, extent)).y
        rest = n.b.add(p.FloorDivide(rest, extent)).y
        coordinates.insert(0, sub(n, at, w.before[axis]))
    order = range(len(sizes))
    if column_major:
        order = reversed(order)
    place: Value | None = None
    for axis in order:
        if place is None:
            place = coordinates[axis]
        else:
            size = n.full(sizes[axis], DType.I64)
            place = n.b.add(p.Add(n.b.add(p.Mul(place, size)).y, coordinates[axis])).y
    planes = n.b.add(Iota(length=product(x.shape[:2]))).y
    first = n.b.add(p.Mul(planes, n.full(product(sizes), DType.I64))).y
    first = n.b.reshape(first, (*x.shape[:2], *(1,) * len(sizes)))
    assert place is not None, "a pool over no axis"
    return n.b.add(p.Add(first, place)).y


def _window_sums(n: Node, x: Value, w: Window, more: Sequence[int]) -> Value:
    """The sum of each window, by a convolution of each channel with ones."""
    behind = [a + m for a, m in zip(w.after, more, strict=True)]
    ready = padded(n, x, w.before, behind)
    rows = product(x.shape[:2])
    flat = n.b.reshape(ready, (rows, 1, *ready.shape[2:]))
    ones = n.b.full(1.0, x.dtype, (1, 1, *w.kernel))
    none = [0] * len(w.kernel)
    y = convolve(n, flat, ones, None, Window(w.kernel, w.strides, w.dilations, none, none), 1)
    return n.b.reshape(y, (*x.shape[:2], *y.shape[2:]))


@onnx_op("AveragePool", since=7)
def _average_pool(n: Node) -> Value:
    """The sum of each window by how many of its elements count: not those that ceil_mode adds, and
    padding only with ``count_include_pad``.
    """
    x = n.x()
    w, more = _pool_window(n, x)
    wide = n.b.cast(x, DType.F64 if x.dtype is DType.F64 else DType.F32)
    sums = _window_sums(n, wide, w, more)
    sizes = x.shape[2:]
    if not any((*w.before, *w.after, *more)):
        return n.b.cast(mul(n, sums, 1 / math.prod(w.kernel)), x.dtype)
    if not all(isinstance(s, int) for s in sizes):
        raise Unsupported("a padded average pool where sizes are not known")
    return n.b.cast(n.b.add(p.Div(sums, _counts(n, cast("Any", sizes), w, more))).y, x.dtype)


def _counts(n: Node, sizes: Sequence[int], w: Window, more: Sequence[int]) -> Value:
    """How many elements of each window count: the product over axes of how many there are."""
    count = torch.ones(1, 1)
    for axis, size in enumerate(sizes):
        inside = torch.ones(size)
        pad = 1.0 if n.attr("count_include_pad", 0) else 0.0
        ends = (torch.full((k,), pad) for k in (w.before[axis], w.after[axis]))
        before, after = ends
        row = torch.cat([before, inside, after, torch.zeros(more[axis])])
        reach = w.dilations[axis] * (w.kernel[axis] - 1) + 1
        windows = row.unfold(0, reach, w.strides[axis])[:, :: w.dilations[axis]].sum(1)
        count = count.unsqueeze(-1) * windows
    return constant(n, count)


@onnx_op("LpPool", since=1)
def _lp_pool(n: Node) -> Value:
    x, power = n.x(), float(n.attr("p", 2))
    w, more = _pool_window(n, x)
    raised = n.b.add(p.Pow(n.b.add(p.Abs(x)).y, n.full(power, x))).y
    sums = _window_sums(n, raised, w, more)
    return n.b.add(p.Pow(sums, n.full(1 / power, x))).y


@onnx_op("GlobalMaxPool")
def _global_max(n: Node) -> Value:
    x = n.x()
    return n.b.add(Amax(x, axes=tuple(range(2, x.tensor.rank)), keepdim=True)).y


@onnx_op("GlobalLpPool")
def _global_lp(n: Node) -> Value:
    x, power = n.x(), float(n.attr("p", 2))
    raised = n.b.add(p.Pow(n.b.add(p.Abs(x)).y, n.full(power, x))).y
    sums = total(n, raised, range(2, x.tensor.rank))
    return n.b.add(p.Pow(sums, n.full(1 / power, x))).y


@onnx_op("MaxUnpool", since=1)
def _max_unpool(n: Node) -> Value:
    """Puts each element where the indices of a max pool say, into zeros."""
    x, index = n.x(0), n.x(1)
    kernel = n.attr("kernel_shape")
    w = window_of(n, kernel, [0] * len(kernel))
    sizes = zip(x.shape[2:], w.strides, w.kernel, w.before, w.after, strict=True)
    small = (*x.shape[:2], *(dim((e - 1) * s + k - a - b) for e, s, k, a, b in sizes))
    shape = tuple(n.dims(2)) if n.has(2) else small
    count = x.tensor.numel
    flat = n.b.full(0, x.dtype, (product(small),))
    source, at = n.b.reshape(x, (count,)), n.b.reshape(index, (count,))
    if shape != small:  # indices are those of the smaller planes
        raised = n.b.add(Scatter(flat, at, source, axis=0)).y
        y = n.b.reshape(raised, small)
        for axis in range(2, len(shape)):
            y = pad_axis(n, y, axis, 0, dim(shape[axis] - small[axis]))
        return y
    return n.b.reshape(n.b.add(Scatter(flat, at, source, axis=0)).y, shape)


@onnx_op("Col2Im")
def _col2im(n: Node) -> Value:
    x, image, block = n.x(), n.ints(1), n.ints(2)
    count = len(image)
    strides, dilations = n.attr("strides") or [1] * count, n.attr("dilations") or [1] * count
    pads = n.attr("pads") or [0] * (2 * count)
    whole = [i + a + b for i, a, b in zip(image, pads[:count], pads[count:], strict=True)]
    if count != 2:
        raise Unsupported(f"blocks of {count} axes")
    channels = floor_div(x.shape[1], math.prod(block))
    kind = x.tensor.with_shape((x.shape[0], channels, *whole))
    y = n.call("col2im.default", x, whole, block, dilations, [0, 0], strides, kind=kind)
    for axis in range(count):
        y = pad_axis(n, y, axis + 2, -pads[axis], -pads[count + axis])
    return y


__all__ = ["convolve"]
