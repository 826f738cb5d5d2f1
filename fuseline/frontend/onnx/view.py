"""Operators that rearrange elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import sympy
import torch

from fuseline.frontend.builder import axis_of
from fuseline.frontend.onnx.bounds import at_most, place
from fuseline.frontend.onnx.data import from_numpy
from fuseline.frontend.onnx.node import Given, Node
from fuseline.frontend.onnx.reduce import along, gather_along
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.index import IndexSelect
from fuseline.ir.ops.view import Concat, Pad
from fuseline.ir.types import Dim, DType, TensorType, dim, product, same

FAR = 2**31 - 1
"""A bound from here on stands for the end."""


# -- shapes ---------------------------------------------------------------------------------


@onnx_op("Reshape")
def _reshape(n: Node) -> Value:
    x = n.x()
    shape: list[Dim] = []
    for axis, extent in enumerate(n.dims(1)):
        copied = same(extent, 0) and not n.attr("allowzero", 0)
        shape.append(x.shape[axis] if copied else extent)
    if -1 in shape:
        at = shape.index(-1)
        shape[at] = _quotient(x.tensor.numel, product([e for i, e in enumerate(shape) if i != at]))
    return n.b.reshape(x, shape)


def _quotient(whole: Dim, part: Dim) -> Dim:
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part else 0
    found: Any = cast("Any", sympy).cancel(cast("Any", whole) / cast("Any", part))
    if not found.is_polynomial():
        found = sympy.floor(found)
    return dim(found)


@onnx_op("Flatten")
def _flatten(n: Node) -> Value:
    x = n.x()
    axis = n.attr("axis", 1)
    axis = axis + x.tensor.rank if axis < 0 else axis
    return n.b.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@onnx_op("Squeeze")
def _squeeze(n: Node) -> Value:
    x = n.x()
    axes = n.axes(1, x.tensor.rank)
    if axes is None:
        axes = [a for a, e in enumerate(x.shape) if e == 1]
    for axis in axes:
        if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
            raise Unsupported(f"to squeeze axis {axis} of {x.type}")
    return n.b.reshape(x, [e for a, e in enumerate(x.shape) if a not in axes])


@onnx_op("Unsqueeze")
def _unsqueeze(n: Node) -> Value:
    return n.unsqueeze(n.x(), n.ints(1) if n.has(1) else n.attr("axes"))


@onnx_op("Transpose")
def _transpose(n: Node) -> Value:
    x = n.x()
    order = n.attr("perm") or list(reversed(range(x.tensor.rank)))
    return n.b.permute(x, [axis_of(a, x.tensor.rank) for a in order])


def broadcast_to(n: Node, x: Value, shape: Sequence[Dim]) -> Value:
    """x broadcast against a shape, whose own extents of 1 give way."""
    have = [1] * (len(shape) - x.tensor.rank) + list(x.shape)
    want = [1] * (x.tensor.rank - len(shape)) + list(shape)
    return n.b.expand(x, [h if w == 1 else w for h, w in zip(have, want, strict=True)])


@onnx_op("Expand")
def _expand(n: Node) -> Value:
    return broadcast_to(n, n.x(), n.dims(1))


@onnx_op("Tile")
def _tile(n: Node) -> Value:
    """By a new dim before each, broadcast, and a reshape."""
    x, repeats = n.x(), n.dims(1)
    apart = [e for size in x.shape for e in (1, size)]
    wide = [e for times, size in zip(repeats, x.shape, strict=True) for e in (times, size)]
    whole = [dim(t * s) for t, s in zip(repeats, x.shape, strict=True)]
    return n.b.reshape(n.b.expand(n.b.reshape(x, apart), wide), whole)


# -- parts ----------------------------------------------------------------------------------


@onnx_op("Slice", since=10)
def _slice(n: Node) -> Value:
    x = n.x()
    starts, stops = n.dims(1), n.dims(2)
    axes = n.axes(3, x.tensor.rank) or list(range(len(starts)))
    steps = n.ints(4) if n.has(4) else [1] * len(starts)
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        x = _part(n, x, axis, start, stop, step)
    return x


def _part(n: Node, x: Value, axis: int, start: Dim, stop: Dim, step: int) -> Value:
    extent = x.shape[axis]
    if step < 0:  # the same slice of the elements in reverse
        x = n.call("flip.default", x, [axis], kind=x.tensor)
        start, stop = _mirrored(start, extent), _mirrored(stop, extent)
        step = -step
    first, last = place(n, start, extent), place(n, _end(stop, extent), extent)
    if isinstance(first, int) and isinstance(last, int):
        last = max(first, last)
    elif not n.b.is_nonnegative(dim(last - first)):
        first = at_most(n, first, last)
    if step == 1 or isinstance(dim(last - first), int):
        return n.b.slice(x, axis, first, last, step)
    size = dim(sympy.floor(cast("Any", last - first + step - 1) / step))
    shape = [size if a == axis else e for a, e in enumerate(x.shape)]
    return n.call("slice.Tensor", x, axis, first, last, step, kind=x.tensor.with_shape(shape))


def _end(stop: Dim, extent: Dim) -> Dim:
    return extent if isinstance(stop, int) and stop >= FAR else stop


def _mirrored(bound: Dim, extent: Dim) -> Dim:
    """Where a bound lies when the elements are counted from the end."""
    if isinstance(bound, int) and isinstance(extent, int):
        bound = bound + extent if bound < 0 else bound
        return extent - 1 - min(max(bound, -1), extent - 1)
    if isinstance(bound, int):
        if bound < -FAR:
            return extent
        return -1 - bound if bound < 0 else 0 if bound >= FAR else dim(extent - 1 - bound)
    return dim(extent - 1 - bound)


@onnx_op("Split", since=13)
def _split(n: Node) -> list[Value]:
    x, axis, extent = n.x(), n.axis(0), n.x().shape[n.axis(0)]
    count = len(n.wanted)
    if n.has(1):
        sizes = n.dims(1)
    elif isinstance(extent, int):
        each = -(-extent // count)
        sizes = [max(min(each, extent - i * each), 0) for i in range(count)]
    else:
        each = _quotient(extent, count)
        if dim(each * count) != extent:
            raise Unsupported(f"{count} equal parts of {extent}")
        sizes = [each] * count
    parts: list[Value] = []
    start: Dim = 0
    for size in sizes:
        stop = dim(start + size)
        parts.append(n.b.slice(x, axis, start, stop))
        start = stop
    return parts


@onnx_op("Concat")
def _concat(n: Node) -> Value:
    xs = n.xs()
    return xs[0] if len(xs) == 1 else n.b.add(Concat(tuple(xs), axis=n.axis(0))).y


# -- padding --------------------------------------------------------------------------------


@onnx_op("Pad", since=11)
def _pad(n: Node) -> Value:
    x, pads = n.x(), n.dims(1)
    rank = x.tensor.rank
    axes = [axis_of(a, rank) for a in n.ints(3)] if n.has(3) else list(range(rank))
    value = n.number(2) if n.has(2) else 0
    for number, axis in enumerate(axes):
        before, after = pads[number], pads[number + len(axes)]
        x = pad_axis(n, x, axis, before, after, n.attr("mode", "constant"), value)
    return x


def pad_axis(
    n: Node, x: Value, axis: int, before: Dim, after: Dim, mode: str = "constant", value: Any = 0
) -> Value:
    """x with elements added along an axis, or taken away where a number is negative."""
    cut = [-v if isinstance(v, int) and v < 0 else 0 for v in (before, after)]
    x = n.b.slice(x, axis, cut[0], dim(x.shape[axis] - cut[1]))
    before, after = (0 if isinstance(v, int) and v < 0 else v for v in (before, after))
    if before == 0 and after == 0:
        return x
    if mode != "constant":
        return _pad_by_places(n, x, axis, before, after, mode)
    if x.dtype is DType.BOOL or abs(value) > 2**53:
        shape = list(x.shape)
        parts = [n.b.full(value, x.dtype, _with(shape, axis, v)) for v in (before, after)]
        return n.b.add(Concat((parts[0], x, parts[1]), axis=axis)).y
    return n.b.add(Pad(x, axis=axis, before=before, after=after, value=float(value))).y


def _with(shape: Sequence[Dim], axis: int, extent: Dim) -> list[Dim]:
    return [extent if a == axis else e for a, e in enumerate(shape)]


def _pad_by_places(n: Node, x: Value, axis: int, before: Dim, after: Dim, mode: str) -> Value:
    size = x.shape[axis]
    if not (isinstance(size, int) and isinstance(before, int) and isinstance(after, int)):
        raise Unsupported(f"padding by {mode} where sizes are not known")
    places = np.pad(np.arange(size), (before, after), cast("Any", mode))
    return n.b.add(IndexSelect(x, constant(n, from_numpy(places)), axis=axis)).y


def constant(n: Node, tensor: torch.Tensor) -> Value:
    """A tensor that the importer has made."""
    kind = TensorType(DType.from_torch(tensor.dtype), tuple(tensor.shape))
    return n.graph.value(Given(f"{n.name or n.op}_constant", kind, tensor=tensor))


# -- blocks ---------------------------------------------------------------------------------


@onnx_op("DepthToSpace")
def _depth_to_space(n: Node) -> Value:
    x, size = n.x(), n.attr("blocksize")
    batch, depth, height, width = x.shape
    part = _quotient(depth, size * size)
    if n.attr("mode", "DCR") == "DCR":
        x = n.b.reshape(x, (batch, size, size, part, height, width))
        x = n.b.permute(x, (0, 3, 4, 1, 5, 2))
    else:
        x = n.b.reshape(x, (batch, part, size, size, height, width))
        x = n.b.permute(x, (0, 1, 4, 2, 5, 3))
    return n.b.reshape(x, (batch, part, dim(height * size), dim(width * size)))


@onnx_op("SpaceToDepth")
def _space_to_depth(n: Node) -> Value:
    x, size = n.x(), n.attr("blocksize")
    batch, depth, height, width = x.shape
    rows, columns = _quotient(height, size), _quotient(width, size)
    x = n.b.reshape(x, (batch, depth, rows, size, columns, size))
    order = (0, 3, 5, 1, 2, 4) if n.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    x = n.b.permute(x, order)
    return n.b.reshape(x, (batch, dim(depth * size * size), rows, columns))


@onnx_op("Trilu")
def _trilu(n: Node) -> Value:
    x = n.x()
    offset = n.number(1) if n.has(1) else 0
    rows, columns = x.shape[-2:]
    row = n.b.reshape(n.b.add(Iota(length=rows, start=offset)).y, (rows, 1))
    column = n.b.add(Iota(length=columns)).y
    kind = p.Ge if n.attr("upper", 1) else p.Le
    kept = n.b.add(kind(column, row)).y
    return n.b.add(p.Where(kept, x, n.full(0, x))).y


@onnx_op("ReverseSequence")
def _reverse_sequence(n: Node) -> Value:
    """Along ``time_axis``, the first so many elements of each batch in reverse."""
    x, lengths = n.x(0), n.b.cast(n.x(1), DType.I64)
    time, batch = n.attr("time_axis", 0), n.attr("batch_axis", 1)
    shape = [x.shape[a] if a == batch else 1 for a in range(x.tensor.rank)]
    lengths = n.b.reshape(lengths, shape)
    at = along(n, x, time)
    last = n.b.add(p.Sub(lengths, n.full(1, DType.I64))).y
    inside = n.b.add(p.Lt(at, lengths)).y
    places = n.b.add(p.Where(inside, n.b.add(p.Sub(last, at)).y, at)).y
    return gather_along(n, x, n.b.expand(places, x.shape), time)


__all__ = ["broadcast_to", "constant", "pad_axis"]
