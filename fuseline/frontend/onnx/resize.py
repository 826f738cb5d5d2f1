"""Resizing and sampling of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from fuseline.frontend.builder import axis_of
from fuseline.frontend.onnx.data import from_numpy
from fuseline.frontend.onnx.elementwise import add
from fuseline.frontend.onnx.matmul import product_of
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.frontend.onnx.view import constant
from fuseline.ir.core import Value
from fuseline.ir.ops.index import IndexSelect
from fuseline.ir.types import Dim, DType, dim, floor_div


@onnx_op("Resize", since=11)
def _resize(n: Node) -> Value:
    """Along one axis after the other: by indices, or by a product with weights of each place."""
    x = n.x()
    rank = x.tensor.rank
    axes = [axis_of(a, rank) for a in n.attr("axes") or range(rank)]
    roi = [float(v) for v in n.elements(1).flat] if n.has(1) else []
    for number, (axis, size, scale) in enumerate(_sizes(n, x, axes)):
        region = (roi[number], roi[number + len(axes)]) if len(roi) == 2 * len(axes) else (0.0, 1.0)
        cropped = n.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
        if scale == 1 and size == x.shape[axis] and not cropped:
            continue
        x = _along(n, x, axis, size, scale, region)
    return x


@onnx_op("Upsample", since=9)
def _upsample(n: Node) -> Value:
    """The older form of Resize: by scales, from the corner of the first element."""
    x = n.x()
    n.attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for axis, scale in enumerate(float(v) for v in n.elements(1).flat):
        if scale != 1:
            x = _along(n, x, axis, _scaled(x.shape[axis], scale), scale, (0.0, 1.0))
    return x


def _sizes(n: Node, x: Value, axes: Sequence[int]) -> list[tuple[int, Dim, float]]:
    """Each axis with its new extent and its scale."""
    if n.has(2) and n.given(2).type.numel != 0:
        scales = [float(v) for v in n.elements(2).flat]
        return [
            (a, x.shape[a] if s == 1 else _scaled(x.shape[a], s), s)
            for a, s in zip(axes, scales, strict=True)
        ]
    sizes = n.dims(3)
    policy = n.attr("keep_aspect_ratio_policy", "stretch")
    pairs = [(w, x.shape[a]) for a, w in zip(axes, sizes, strict=True)]
    if policy == "stretch":
        return [
            (a, w, 1.0 if w == h else int(cast("Any", w)) / int(cast("Any", h)))
            for a, (w, h) in zip(axes, pairs, strict=True)
        ]
    ratios = [int(cast("Any", w)) / int(cast("Any", h)) for w, h in pairs]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [
        (a, math.floor(scale * int(cast("Any", h)) + 0.5), scale)
        for a, (_, h) in zip(axes, pairs, strict=True)
    ]


def _scaled(extent: Dim, scale: float) -> Dim:
    if isinstance(extent, int):
        return math.floor(extent * scale)
    if scale == int(scale):
        return dim(extent * int(scale))
    if 1 / scale == int(1 / scale):
        return floor_div(extent, int(1 / scale))
    raise Unsupported(f"a size scaled by {scale}")


def _along(
    n: Node, x: Value, axis: int, size: Dim, scale: float, region: tuple[float, float]
) -> Value:
    have = x.shape[axis]
    if not (isinstance(have, int) and isinstance(size, int)):
        raise Unsupported(f"{have} to {size} elements, which are not known")
    places = _coordinates(n, have, size, scale, region)
    mode = n.attr("mode", "nearest")
    cropped = n.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
    outside = (places < 0) | (places > have - 1) if cropped else np.zeros(size, dtype=bool)
    if mode == "nearest" and not outside.any():
        index = np.clip(_nearest(n, places), 0, have - 1).astype(np.int64)
        return n.b.add(IndexSelect(x, constant(n, from_numpy(index)), axis=axis)).y
    if mode == "nearest":
        weights = np.eye(have)[np.clip(_nearest(n, places), 0, have - 1).astype(np.int64)]
    else:
        weights = _weights(n, places, have, scale)
    weights[outside] = 0
    wide = n.b.cast(x, DType.F64 if x.dtype is DType.F64 else DType.F32)
    table = constant(n, from_numpy(weights.T).to(wide.dtype.torch))
    order = [a for a in range(x.tensor.rank) if a != axis] + [axis]
    y = product_of(n, n.b.permute(wide, order), table)
    y = n.b.permute(y, [order.index(a) for a in range(len(order))])
    if outside.any():
        value = np.where(outside, float(n.attr("extrapolation_value", 0.0)), 0.0)
        shape = [size if a == axis else 1 for a in range(x.tensor.rank)]
        column = from_numpy(value).to(wide.dtype.torch).reshape(shape)
        y = add(n, y, constant(n, column))
    if x.dtype.is_float:
        return n.b.cast(y, x.dtype)
    return n.b.cast(n.call("round.default", y, kind=y.tensor), x.dtype)


def _coordinates(n: Node, have: int, size: int, scale: float, region: tuple[float, float]) -> Any:
    """Where the elements of the result lie among those of x."""
    at = np.arange(size, dtype=np.float64)
    length = scale * have
    match n.attr("coordinate_transformation_mode", "half_pixel"):
        case "align_corners":
            return at * 0 if length == 1 else at * (have - 1) / (length - 1)
        case "asymmetric":
            return at / scale
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return at * 0 - 0.5 if length == 1 else (at + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            offset = have / 2 * (1 - size / length)
            return offset + (at + 0.5) / scale - 0.5
        case "tf_crop_and_resize":
            first, last = region
            if length == 1:
                return at * 0 + (last + first) * (have - 1) / 2
            return first * (have - 1) + at * (last - first) * (have - 1) / (length - 1)
        case other:
            raise Unsupported(f"coordinates by {other}")


def _nearest(n: Node, places: Any) -> Any:
    match n.attr("nearest_mode", "round_prefer_floor"):
        case "round_prefer_floor":
            return np.ceil(places - 0.5)
        case "round_prefer_ceil":
            return np.floor(places + 0.5)
        case "floor":
            return np.floor(places)
        case "ceil":
            return np.ceil(places)
        case other:
            raise Unsupported(f"the nearest element by {other}")


def _weights(n: Node, places: Any, have: int, scale: float) -> Any:
    """For each place the weight of each element: a kernel around it, wider where antialiased."""
    mode = n.attr("mode")
    reach = {"linear": 1, "cubic": 2}.get(mode)
    if reach is None:
        raise Unsupported(f"interpolation by {mode}")
    narrow = min(scale, 1.0) if n.attr("antialias", 0) else 1.0
    found = np.zeros((len(places), have))
    for row, place in enumerate(places):
        first = math.floor(place - reach / narrow) + (1 if narrow == 1 else 0)
        around = cast("Any", np).arange(first, math.ceil(place + reach / narrow) + 1)
        values = _kernel(mode, np.abs(around - place) * narrow, n.attr("cubic_coeff_a", -0.75))
        if n.attr("exclude_outside", 0):
            values = np.where((around >= 0) & (around < have), values, 0.0)
        total = values.sum()
        values = values / total if total else values
        np.add.at(found[row], np.clip(around, 0, have - 1), values)
    return found


def _kernel(mode: str, x: Any, a: float) -> Any:
    if mode == "linear":
        return np.clip(1 - x, 0, 1)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


# -- sampling -------------------------------------------------------------------------------


@onnx_op("GridSample")
def _grid_sample(n: Node) -> Value:
    x, grid = n.x(0), n.x(1)
    count = x.tensor.rank - 2
    mode = n.attr("mode", "linear").removeprefix("bi")
    modes = {"linear": 0, "nearest": 1, "cubic": 2}
    padding = {"zeros": 0, "border": 1, "reflection": 2}[n.attr("padding_mode", "zeros")]
    aligned = bool(n.attr("align_corners", 0))
    if count not in (2, 3) or (count == 3 and mode == "cubic"):
        raise Unsupported(f"{mode} samples of {count} axes")
    kind = x.tensor.with_shape((*x.shape[:2], *grid.shape[1:-1]))
    grid = n.b.cast(grid, x.dtype)
    name = f"grid_sampler_{count}d.default"
    return n.call(name, x, grid, modes[mode], padding, aligned, kind=kind)


@onnx_op("AffineGrid")
def _affine_grid(n: Node) -> Value:
    theta, size = n.x(0), n.dims(1)
    kind = theta.tensor.with_shape((size[0], *size[2:], len(size) - 2))
    aligned = bool(n.attr("align_corners", 0))
    return n.call("affine_grid_generator.default", theta, size, aligned, kind=kind)
