"""Lowerings onto the element-wise kernel: regions, single ops, reductions and copies."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.codegen.cpu.region_plan import plan
from fuseline.codegen.lower import Launch, Lowered, Refusal, lowers, work
from fuseline.ir.core import OPS, Func, Op, Trait, Value
from fuseline.ir.layout import Layout, LayoutMap, dense
from fuseline.ir.ops.buffer import SliceWrite, Write
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy, Pointwise, RmsNormAdd, SandwichNorm
from fuseline.ir.ops.index import SliceScatter
from fuseline.ir.ops.pointwise import Add, Cast, Div, Exp, Mul, Rsqrt, Sub
from fuseline.ir.ops.raised import CastPoint
from fuseline.ir.ops.reduce import Amax, Mean, Softmax, Sum
from fuseline.ir.ops.view import Concat, Pad, Reshape
from fuseline.ir.region import REDUCTIONS, as_body
from fuseline.ir.types import Dim, DType, TensorType, dim, product

_ELEMENT_WISE = tuple(cls for cls in OPS.values() if Trait.POINTWISE in cls.traits)


@lowers(*_ELEMENT_WISE, *REDUCTIONS, Full, Iota, Copy)
def lower_single(op: Op, layouts: LayoutMap) -> Lowered:
    """One element-wise op, reduction or constant."""
    operands = tuple(dict.fromkeys(op.operands))
    return _region(op, as_body(op), operands, op.results, layouts)


@lowers(Pointwise)
def lower_pointwise(op: Pointwise, layouts: LayoutMap) -> Lowered:
    """A fused region."""
    return _region(op, op.body, op.xs, op.ys, layouts)


@lowers(Softmax)
def lower_softmax(op: Softmax, layouts: LayoutMap) -> Lowered:
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


@lowers(RmsNormAdd)
def lower_rms_norm_add(op: RmsNormAdd, layouts: LayoutMap) -> Lowered:
    """The norm spelled out, and the residual added to it."""
    body = Func("rms_norm_add")
    x, residual = (body.add_arg(v.tensor, v.hint) for v in (op.x, op.residual))
    normal = _norm(body, x, op.weight, op.eps, op.offset, op.cast)
    body.set_returns([body.append(Add(residual, normal)).y])
    return _region(op, body, op.operands, (op.y,), layouts)


@lowers(SandwichNorm)
def lower_sandwich_norm(op: SandwichNorm, layouts: LayoutMap) -> Lowered:
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


@lowers(Reshape)
def lower_reshape(op: Reshape, layouts: LayoutMap) -> Lowered:
    """A reshape that is no view: a copy in the order of its operand's elements."""
    place = layouts.layout(op.y)
    if not place.is_dense(op.y.shape):
        return Refusal("a reshape into memory that is not dense")
    target = Layout(place.offset, dense(op.x.shape).strides)
    return _copies([(op.x, op.y, target, 0)], layouts)


@lowers(Concat)
def lower_concat(op: Concat, layouts: LayoutMap) -> Lowered:
    """Each operand is copied to its part of the result."""
    layout = layouts.layout(op.y)
    parts: list[tuple[Value, Value, Layout, Dim]] = []
    start: Dim = 0
    for x in op.xs:
        parts.append((x, op.y, layout, dim(start * layout.strides[op.axis])))
        start = dim(start + x.shape[op.axis])
    return _copies(parts, layouts)


@lowers(Write)
def lower_write(op: Write, layouts: LayoutMap) -> Lowered:
    """A whole buffer is overwritten."""
    return _copies([(op.x, op.buffer, layouts.layout(op.buffer), 0)], layouts)


@lowers(SliceWrite)
def lower_slice_write(op: SliceWrite, layouts: LayoutMap) -> Lowered:
    """A slice of a buffer is overwritten."""
    layout = layouts.layout(op.buffer)
    origin = list(op.origin or (0,) * op.src.tensor.rank)
    origin[op.axis] = op.start
    shift = dim(sum(start * step for start, step in zip(origin, layout.strides, strict=True)))
    return _copies([(op.src, op.buffer, layout, shift)], layouts)


@lowers(SliceScatter)
def lower_slice_scatter(op: SliceScatter, layouts: LayoutMap) -> Lowered:
    """A copy, then a copy into a slice of it."""
    layout = layouts.layout(op.y)
    strides = list(layout.strides)
    shift = dim(op.start * strides[op.axis])
    strides[op.axis] = dim(strides[op.axis] * op.step)
    part = Layout(layout.offset, tuple(strides))
    return _copies([(op.x, op.y, layout, 0), (op.src, op.y, part, shift)], layouts)


@lowers(Pad)
def lower_pad(op: Pad, layouts: LayoutMap) -> Lowered:
    """The operand is copied between two parts that are filled."""
    layout, extent = layouts.layout(op.y), op.x.shape[op.axis]
    step = layout.strides[op.axis]
    launches = _copies([(op.x, op.y, layout, dim(op.before * step))], layouts)
    for size, start in ((op.before, 0), (op.after, op.before + extent)):
        if size == 0 or isinstance(launches, Refusal):
            continue
        shape = list(op.y.shape)
        shape[op.axis] = size
        body = Func("fill")
        full = body.append(Full(value=op.value, shape=tuple(shape), dtype=op.x.dtype))
        body.set_returns([full.y])
        made = plan(body, [], [layout], [dim(start * step)])
        if isinstance(made, str):
            return Refusal(made)
        cost = _moved(op.x.dtype, product(shape))
        launches.append(Launch(made.kernel, (op.y,), made.dims, cost))
    return launches


def _region(
    op: Op, body: Func, operands: Sequence[Value], results: Sequence[Value], layouts: LayoutMap
) -> Lowered:
    made = plan(body, [layouts.layout(v) for v in operands], [layouts.layout(v) for v in results])
    if isinstance(made, str):
        return Refusal(made)
    buffers = (*(operands[i] for i in made.operands), *results)
    return [Launch(made.kernel, buffers, made.dims, work(op))]


def copied(x: Value, y: Value, layouts: LayoutMap) -> list[Launch] | Refusal:
    """The launch that copies x to y, or fills y with the number that all of x is."""
    layout = layouts.layout(y)
    if not isinstance(x.owner, Full):
        return _copies([(x, y, layout, 0)], layouts)
    made = plan(as_body(x.owner), [], [layout])
    if isinstance(made, str):
        return Refusal(made)
    return [Launch(made.kernel, (y,), made.dims, _moved(y.dtype, y.tensor.numel))]


def _copies(
    parts: Sequence[tuple[Value, Value, Layout, Dim]], layouts: LayoutMap
) -> list[Launch] | Refusal:
    """Copies of values into places of others, cast where the types differ."""
    launches: list[Launch] = []
    for source, target, layout, shift in parts:
        body = Func("copy")
        x = body.add_arg(source.tensor, "x")
        same = source.dtype is target.dtype
        step = Copy(x) if same else Cast(x, dtype=target.dtype)
        body.set_returns([body.append(step).y])
        made = plan(body, [layouts.layout(source)], [layout], [shift])
        if isinstance(made, str):
            return Refusal(made)
        cost = _moved(target.dtype, source.tensor.numel)
        launches.append(Launch(made.kernel, (source, target), made.dims, cost))
    return launches


def _moved(dtype: DType, elements: Dim) -> Dim:
    """The work of moving elements: read and written once."""
    return dim(8 * TensorType(dtype, (elements,)).nbytes)
