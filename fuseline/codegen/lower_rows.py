"""Lowerings onto the row kernels: norms, and norm with rotation of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.codegen.lower import Launch, Lowered, NeedDense, Refusal, lowers, work
from fuseline.codegen.norm import NormKernel
from fuseline.codegen.qk_norm_rope import QkNormRopeKernel, Rotation, Stream
from fuseline.codegen.rope import rope
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap, split_rows
from fuseline.ir.ops.fused import AddRmsNorm, QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.ops.raised import LayerNorm, RmsNorm, Rope
from fuseline.ir.types import Dim, DType

FLOATS = (DType.F32, DType.BF16, DType.F16)


def dtype_name(value: Value | None) -> str | None:
    """The element type's name; None for an absent operand."""
    return None if value is None else value.dtype.value


def unsupported(*values: Value | None) -> Refusal | None:
    """A refusal where an operand is not of a floating type that the kernels compute with."""
    for value in values:
        if value is not None and value.dtype not in FLOATS:
            return Refusal(f"{value.dtype} operands; the kernel takes f32, bf16 and f16")
    return None


@lowers(RmsNorm, LayerNorm)
def lower_norm(op: RmsNorm | LayerNorm, layouts: LayoutMap) -> Lowered:
    """A norm over the last dim."""
    bias = op.bias if isinstance(op, LayerNorm) else None
    shape, width = op.x.shape, op.x.shape[-1]
    if not isinstance(width, int):
        return Refusal(f"rows of {width} elements; the kernel needs a known width")
    if refusal := unsupported(op.x, op.weight, bias):
        return refusal
    rows = split_rows(shape, [layouts.layout(op.x), layouts.layout(op.y)])
    if rows is None:
        return NeedDense((op.x,))
    weight_rows = 1
    parameters = [v for v in (op.weight, bias) if v is not None]
    for value in parameters:
        if not layouts.layout(value).is_dense(value.shape):
            return NeedDense((value,))
        if len(value.shape) > 1:
            count = value.tensor.numel
            if not isinstance(count, int) or rows.inner != count // width:
                return Refusal(f"weight rows {value.type} do not follow the rows of {op.x.type}")
            weight_rows = count // width
    kernel = NormKernel(
        dtype=op.x.dtype.value,
        width=width,
        kind="layer" if isinstance(op, LayerNorm) else "rms",
        weight=dtype_name(op.weight),
        bias=dtype_name(bias),
        weight_rows=weight_rows,
        eps=op.eps,
        offset=op.offset if isinstance(op, RmsNorm) else 0.0,
        cast=op.cast,
    )
    (x_outer, x_inner), (y_outer, y_inner) = rows.strides
    dims = (rows.outer, rows.inner, x_outer, x_inner, y_outer, y_inner)
    return [Launch(kernel, (op.x, *parameters, op.y), dims, work(op))]


@lowers(AddRmsNorm)
def lower_add_rms_norm(op: AddRmsNorm, layouts: LayoutMap) -> Lowered:
    """Residual add and RMS norm."""
    width = op.x.shape[-1]
    if not isinstance(width, int):
        return Refusal(f"rows of {width} elements; the kernel needs a known width")
    if refusal := unsupported(op.x, op.residual, op.weight):
        return refusal
    values = (op.x, op.residual, op.sum, op.y)
    rows = split_rows(op.x.shape, [layouts.layout(v) for v in values])
    if rows is None:
        return NeedDense((op.x, op.residual))
    kernel = NormKernel(
        dtype=op.x.dtype.value,
        width=width,
        weight=dtype_name(op.weight),
        eps=op.eps,
        offset=op.offset,
        cast=op.cast,
        residual=True,
    )
    weight = () if op.weight is None else (op.weight,)
    dims: list[Dim] = [rows.outer, rows.inner]
    for pair in rows.strides:
        dims += pair
    buffers = (op.x, op.residual, *weight, op.sum, op.y)
    return [Launch(kernel, buffers, tuple(dims), work(op))]


def rotation_of(
    op: QkNormRope | QkNormRopeWrite | Rope | MlaProjection | MlaProjectionWrite,
) -> Rotation | None:
    """How an op rotates; None where it has no tables."""
    if op.cos is None:
        return None
    return Rotation(
        width=op.width,
        style=op.style,
        table=op.table,
        start=op.start,
        sign=1 if op.sign > 0 else -1,
        round=op.round,
        dtype=op.cos.dtype.value,
    )


def _token_strides(value: Value, layouts: LayoutMap) -> tuple[Dim, Dim, Dim] | None:
    """Strides of batch, token and head of ``[B, S, H, D]``; None where rows are not dense."""
    layout = layouts.layout(value)
    if not layout.is_inner_dense(value.shape):
        return None
    b, t, h, _ = layout.strides
    return b, t, h


def _table_strides(value: Value, batch: Dim, layouts: LayoutMap) -> list[Dim]:
    """Strides of batch and token of a table ``[B | 1, S, W]``; 0 where it is broadcast."""
    b, t, _ = layouts.layout(value).strides
    return [0 if value.shape[0] == 1 and batch != 1 else b, t]


@lowers(QkNormRope, QkNormRopeWrite)
def lower_qk_norm_rope(op: QkNormRope | QkNormRopeWrite, layouts: LayoutMap) -> Lowered:
    """Norm and rotation of queries and keys, and the write into a static cache."""
    cached = isinstance(op, QkNormRopeWrite)
    if refusal := unsupported(*op.operands[: 3 if cached else 2]):
        return refusal
    moved = [op.q, op.k, *([op.v] if cached else [])]
    tables = [t for t in (op.cos, op.sin) if t is not None]
    loose = [v for v in (*moved, *tables) if not layouts.layout(v).is_inner_dense(v.shape)]
    if loose:
        return NeedDense(tuple(loose))
    if any(len(t.shape) != 3 for t in tables):
        return Refusal("tables that are not [B, S, W]")
    try:
        streams = _streams(op)
        kernel = QkNormRopeKernel(
            dtype=op.q.dtype.value,
            streams=streams,
            rotation=rotation_of(op),
            kind="layer" if op.norm == "layer" else "rms",
            eps=op.eps,
            offset=op.offset,
            cast=op.cast,
            scope=op.scope,
            order=op.order,
        )
    except ValueError as error:
        return Refusal(str(error))
    batch, tokens = op.q.shape[:2]
    outs = [op.q_out, op.k_cache, op.v_cache] if cached else [op.q_out, op.k_out]
    dims: list[Dim] = [batch, tokens]
    buffers: list[Value] = []
    for stream, source, out in zip(streams, moved, outs, strict=True):
        strides = _token_strides(source, layouts)
        assert strides is not None, "checked above"
        dims += [*strides, *_out_strides(op, out, layouts, written=stream.cached)]
        buffers += [source, out]
        if stream.name in "qk":
            pair = (op.q_weight, op.q_bias) if stream.name == "q" else (op.k_weight, op.k_bias)
            buffers += [v for v in pair if v is not None]
    for table in tables:
        dims += _table_strides(table, batch, layouts)
    buffers += tables
    if cached:
        buffers.append(op.index)
        dims.append(op.k_cache.shape[2])
    return [Launch(kernel, tuple(buffers), tuple(dims), work(op))]


def _out_strides(
    op: QkNormRope | QkNormRopeWrite, out: Value, layouts: LayoutMap, *, written: bool
) -> tuple[Dim, Dim, Dim]:
    """Strides of batch, token and head of a result or a cache."""
    strides = layouts.layout(out).strides
    if written or op.out == "bhsd":
        return strides[0], strides[2], strides[1]
    return strides[0], strides[1], strides[2]


def _streams(op: QkNormRope | QkNormRopeWrite) -> tuple[Stream, ...]:
    cached = isinstance(op, QkNormRopeWrite)
    streams = [
        _stream("q", op, op.q, op.q_weight, op.q_bias, cached=False),
        _stream("k", op, op.k, op.k_weight, op.k_bias, cached=cached),
    ]
    if cached:
        heads, width = op.v.shape[2:]
        if not isinstance(heads, int) or not isinstance(width, int):
            raise ValueError(f"v {op.v.type}; the kernel needs known heads and head dims")
        streams.append(Stream("v", heads, width, normed=False, roped=False, cached=True))
    return tuple(streams)


def _stream(
    name: str,
    op: QkNormRope | QkNormRopeWrite,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    *,
    cached: bool,
) -> Stream:
    heads, width = x.shape[2:]
    if not isinstance(heads, int) or not isinstance(width, int):
        raise ValueError(f"{name} {x.type}; the kernel needs known heads and head dims")
    parameters = [v for v in (weight, bias) if v is not None]
    return Stream(
        name,
        heads,
        width,
        normed=op.norm != "none",
        roped=op.cos is not None,
        weight=dtype_name(weight),
        bias=dtype_name(bias),
        per_head=any(len(v.shape) > 1 for v in parameters),
        cached=cached,
    )


@lowers(Rope)
def lower_rope(op: Rope, layouts: LayoutMap) -> Lowered:
    """Rotation alone, of heads by token or tokens by head."""
    if refusal := unsupported(op.x, op.cos, op.sin):
        return refusal
    x, cos = _as_four(op.x.shape, 1), _as_four(op.cos.shape, 1)
    if not x or not cos or op.cos.shape != op.sin.shape:
        return Refusal(f"x {op.x.type} with tables {op.cos.type} and {op.sin.type}")
    known = [axis for axis in (1, 2) if cos[axis] == 1 and isinstance(x[axis], int)]
    if not known:
        return Refusal(f"x {op.x.type} with tables {op.cos.type}: no known number of like heads")
    head_axis = known[0]
    heads, width = x[head_axis], x[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return Refusal(f"x {op.x.type}; the kernel needs known heads and head dims")
    loose = [v for v in (op.x, op.cos, op.sin) if not layouts.layout(v).is_inner_dense(v.shape)]
    if loose:
        return NeedDense(tuple(loose))
    rotation = rotation_of(op)
    assert rotation is not None, "a rope has tables"
    order = (0, 3 - head_axis, head_axis)
    dims: list[Dim] = [x[0], x[order[1]]]
    for value in (op.x, op.y):
        strides = _as_four(layouts.layout(value).strides, 0)
        dims += [strides[axis] for axis in order]
    for table in (op.cos, op.sin):
        strides = _as_four(layouts.layout(table).strides, 0)
        dims += [0 if cos[a] == 1 and x[a] != 1 else strides[a] for a in order[:2]]
    kernel = rope(op.x.dtype.value, heads, width, rotation)
    return [Launch(kernel, (op.x, op.y, op.cos, op.sin), tuple(dims), work(op))]


def _as_four(dims: Sequence[Dim], lead: Dim) -> tuple[Dim, ...]:
    """Extents or strides with leading ones for the dims that are left out; empty beyond four."""
    return (lead,) * (4 - len(dims)) + tuple(dims) if len(dims) <= 4 else ()
