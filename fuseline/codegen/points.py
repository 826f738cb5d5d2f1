"""Ops as element-wise regions: what each computes at one point, and where its results lie.

Every target has a kernel for regions; here is what is common to all: one op may be a region, or
several copies into parts of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fuseline.codegen.lower import Refusal, work
from fuseline.ir.core import OPS, Func, Op, Trait, Value
from fuseline.ir.layout import Layout, LayoutMap, dense
from fuseline.ir.ops.buffer import SliceWrite, Write
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy, Pointwise, PointwiseWrite, RmsNormAdd, SandwichNorm
from fuseline.ir.ops.index import SliceScatter
from fuseline.ir.ops.pointwise import Add, Cast, Div, Exp, Mul, Rsqrt, Sub
from fuseline.ir.ops.raised import CastPoint
from fuseline.ir.ops.reduce import Amax, Mean, Softmax, Sum
from fuseline.ir.ops.view import Concat, Pad, Reshape
from fuseline.ir.region import REDUCTIONS, as_body
from fuseline.ir.types import Dim, DType, TensorType, dim, product


@dataclass(frozen=True)
class Points:
    """A region and what it is called with.

    Attributes:
        body: what is computed.
        operands: one for each argument of the body.
        results: the values that are written, one for each return.
        operand_places: where the operands lie.
        places: where the returns lie: strides on the memory of the results, ``shifts`` elements
            behind their beginning.
        shifts: see there.
        work: as in `fuseline.codegen.lower.Launch`.

    """

    body: Func
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    operand_places: tuple[Layout, ...]
    places: tuple[Layout, ...]
    shifts: tuple[Dim, ...]
    work: Dim


Regions: TypeAlias = "list[Points] | Refusal"

REGIONS: dict[type[Op], Callable[[Any, LayoutMap], Regions]] = {}
"""What makes regions of an op, by class; filled by `_of`."""


def regions(op: Op, layouts: LayoutMap) -> Regions:
    """The regions of an op of a class in `REGIONS`, to be computed one after the other."""
    return REGIONS[type(op)](op, layouts)


_Maker: TypeAlias = Callable[[Any, LayoutMap], Regions]


def _of(*classes: type[Op]) -> Callable[[_Maker], _Maker]:
    def register(function: _Maker) -> _Maker:
        REGIONS.update(dict.fromkeys(classes, function))
        return function

    return register


_ELEMENT_WISE = tuple(cls for cls in OPS.values() if Trait.POINTWISE in cls.traits)


@_of(*_ELEMENT_WISE, *REDUCTIONS, Full, Iota, Copy)
def _single(op: Op, layouts: LayoutMap) -> Regions:
    """One element-wise op, reduction or constant."""
    operands = tuple(dict.fromkeys(op.operands))
    return _region(op, as_body(op), operands, op.results, layouts)


@_of(Pointwise)
def _pointwise(op: Pointwise, layouts: LayoutMap) -> Regions:
    """A fused region."""
    return _region(op, op.body, op.xs, op.ys, layouts)


@_of(PointwiseWrite)
def _pointwise_write(op: PointwiseWrite, layouts: LayoutMap) -> Regions:
    """A fused region whose results go into buffers."""
    return _region(op, op.body, op.xs, op.buffers, layouts)


@_of(Softmax)
def _softmax(op: Softmax, layouts: LayoutMap) -> Regions:
    """Softmax: the largest element, the sum of exponentials, and the quotient."""
    body = Func("softmax")
    x = body.add_arg(op.x.tensor, "x")
    wide = DType.F64 if op.x.dtype is DType.F64 else DType.F32
    axes = (op.axis,)
    value = body.append(Cast(x, dtype=wide)).y
    most = body.append(Amax(value, axes=axes, keepdim=True)).y
    power = body.append(Exp(body.append(Sub(value, most)).y)).y
    total = body.append(Sum(power, axes=axes, keepdim=True)).y
    share = body.append(Div(power, total)).y
    body.set_returns([body.append(Cast(share, dtype=op.x.dtype)).y])
    return _region(op, body, (op.x,), (op.y,), layouts)


@_of(RmsNormAdd)
def _rms_norm_add(op: RmsNormAdd, layouts: LayoutMap) -> Regions:
    """The norm spelled out, and the residual added to it."""
    body = Func("rms_norm_add")
    x, residual = (body.add_arg(v.tensor, v.hint) for v in (op.x, op.residual))
    normal = _norm(body, x, op.weight, op.eps, op.offset, op.cast)
    body.set_returns([body.append(Add(residual, normal)).y])
    return _region(op, body, op.operands, (op.y,), layouts)


@_of(SandwichNorm)
def _sandwich_norm(op: SandwichNorm, layouts: LayoutMap) -> Regions:
    """Norm, residual add and norm: the sum is computed again for what is made of it."""
    body = Func("sandwich_norm")
    x, residual = (body.add_arg(v.tensor, v.hint) for v in (op.x, op.residual))
    normal = _norm(body, x, op.weight, op.eps, op.offset, op.cast)
    total = body.append(Add(residual, normal)).y
    y = _norm(body, total, op.next_weight, op.next_eps, op.next_offset, op.next_cast)
    body.set_returns([total, y])
    return _region(op, body, op.operands, (op.sum, op.y), layouts)


def _norm(
    body: Func, x: Value, parameter: Value | None, eps: float, offset: float, cast: CastPoint
) -> Value:
    """An RMS norm of ``x`` spelled out, with its rounding points; the weight is a new argument."""
    wide = DType.F64 if x.dtype is DType.F64 else DType.F32
    f = body.append(Cast(x, dtype=wide)).y
    square = body.append(Mul(f, f)).y
    mean = body.append(Mean(square, axes=(x.tensor.rank - 1,), keepdim=True)).y
    small = body.append(Full(value=eps, dtype=wide)).y
    scale = body.append(Rsqrt(body.append(Add(mean, small)).y)).y
    normal = body.append(Mul(f, scale)).y
    if parameter is None:
        return body.append(Cast(normal, dtype=x.dtype)).y
    weight = body.add_arg(parameter.tensor, "weight")
    if cast == "last":
        weight = body.append(Cast(weight, dtype=wide)).y
    else:
        normal = body.append(Cast(normal, dtype=x.dtype)).y
    if offset:
        weight = body.append(Add(body.append(Full(value=offset, dtype=weight.dtype)).y, weight)).y
    product = body.append(Mul(weight, normal)).y
    return body.append(Cast(product, dtype=x.dtype)).y if cast == "last" else product


@_of(Reshape)
def _reshape(op: Reshape, layouts: LayoutMap) -> Regions:
    """A reshape that is no view: a copy in the order of its operand's elements."""
    place = layouts.layout(op.y)
    if not place.is_dense(op.y.shape):
        return Refusal("a reshape into memory that is not dense")
    target = Layout(place.offset, dense(op.x.shape).strides)
    return _copies([(op.x, op.y, target, 0)], layouts)


@_of(Concat)
def _concat(op: Concat, layouts: LayoutMap) -> Regions:
    """Each operand is copied to its part of the result."""
    layout = layouts.layout(op.y)
    parts: list[tuple[Value, Value, Layout, Dim]] = []
    start: Dim = 0
    for x in op.xs:
        parts.append((x, op.y, layout, dim(start * layout.strides[op.axis])))
        start = dim(start + x.shape[op.axis])
    return _copies(parts, layouts)


@_of(Write)
def _write(op: Write, layouts: LayoutMap) -> Regions:
    """A whole buffer is overwritten."""
    return _copies([(op.x, op.buffer, layouts.layout(op.buffer), 0)], layouts)


@_of(SliceWrite)
def _slice_write(op: SliceWrite, layouts: LayoutMap) -> Regions:
    """A slice of a buffer is overwritten."""
    layout = layouts.layout(op.buffer)
    origin = list(op.origin or (0,) * op.src.tensor.rank)
    origin[op.axis] = op.start
    shift = dim(sum(start * step for start, step in zip(origin, layout.strides, strict=True)))
    return _copies([(op.src, op.buffer, layout, shift)], layouts)


@_of(SliceScatter)
def _slice_scatter(op: SliceScatter, layouts: LayoutMap) -> Regions:
    """A copy, then a copy into a slice of it."""
    layout = layouts.layout(op.y)
    strides = list(layout.strides)
    shift = dim(op.start * strides[op.axis])
    strides[op.axis] = dim(strides[op.axis] * op.step)
    part = Layout(layout.offset, tuple(strides))
    return _copies([(op.x, op.y, layout, 0), (op.src, op.y, part, shift)], layouts)


@_of(Pad)
def _pad(op: Pad, layouts: LayoutMap) -> Regions:
    """The operand is copied between two parts that are filled."""
    layout, extent = layouts.layout(op.y), op.x.shape[op.axis]
    step = layout.strides[op.axis]
    found = _copies([(op.x, op.y, layout, dim(op.before * step))], layouts)
    for size, start in ((op.before, 0), (op.after, op.before + extent)):
        if size == 0:
            continue
        shape = list(op.y.shape)
        shape[op.axis] = size
        body = Func("fill")
        full = body.append(Full(value=op.value, shape=tuple(shape), dtype=op.x.dtype))
        body.set_returns([full.y])
        cost = _moved(op.x.dtype, product(shape))
        shift = dim(start * step)
        found.append(Points(body, (), (op.y,), (), (layout,), (shift,), cost))
    return found


def _region(
    op: Op, body: Func, operands: Sequence[Value], results: Sequence[Value], layouts: LayoutMap
) -> Regions:
    read = tuple(layouts.layout(v) for v in operands)
    written = tuple(layouts.layout(v) for v in results)
    none = (0,) * len(results)
    return [Points(body, tuple(operands), tuple(results), read, written, none, work(op))]


def copied(x: Value, y: Value, layouts: LayoutMap) -> list[Points]:
    """The copy of x to y, or what fills y with the number that all of x is."""
    layout = layouts.layout(y)
    if not isinstance(x.owner, Full):
        return _copies([(x, y, layout, 0)], layouts)
    cost = _moved(y.dtype, y.tensor.numel)
    return [Points(as_body(x.owner), (), (y,), (), (layout,), (0,), cost)]


def _copies(parts: Sequence[tuple[Value, Value, Layout, Dim]], layouts: LayoutMap) -> list[Points]:
    """Copies of values into places of others, cast where the types differ."""
    found: list[Points] = []
    for source, target, layout, shift in parts:
        body = Func("copy")
        x = body.add_arg(source.tensor, "x")
        same = source.dtype is target.dtype
        step = Copy(x) if same else Cast(x, dtype=target.dtype)
        body.set_returns([body.append(step).y])
        cost = _moved(target.dtype, source.tensor.numel)
        place = (layouts.layout(source),)
        found.append(Points(body, (source,), (target,), place, (layout,), (shift,), cost))
    return found


def _moved(dtype: DType, elements: Dim) -> Dim:
    """The work of moving elements: read and written once."""
    return dim(8 * TensorType(dtype, (elements,)).nbytes)


__all__ = ["REGIONS", "Points", "Regions", "copied", "regions"]
