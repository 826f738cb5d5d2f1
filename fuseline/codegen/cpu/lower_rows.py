"""Lowerings onto the row kernels: norms, and norm with rotation of queries and keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fuseline.codegen.cpu.norm import NormKernel
from fuseline.codegen.cpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.cpu.rope import rope
from fuseline.codegen.heads import (
    out_strides,
    rotation_of,
    streams_of,
    table_strides,
    token_strides,
)
from fuseline.codegen.lower import (
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    lowers,
    unsupported,
    work,
)
from fuseline.codegen.norms import NormOperands, norm_operands
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.fused import AddRmsNorm, QkNormRope, QkNormRopeWrite
from fuseline.ir.ops.raised import LayerNorm, RmsNorm, Rope
from fuseline.ir.types import Dim


@lowers(RmsNorm, LayerNorm, AddRmsNorm)
def lower_norm(op: RmsNorm | LayerNorm | AddRmsNorm, layouts: LayoutMap) -> Lowered:
    """A norm over the last dim, with the residual add before it where there is one."""
    found = norm_operands(op, layouts)
    if not isinstance(found, NormOperands):
        return found
    kernel = NormKernel(**dataclasses.asdict(found.norm))
    dims: list[Dim] = [found.rows.outer, found.rows.inner]
    for pair in found.rows.strides:
        dims += pair
    buffers = (*found.sources, *found.parameters, *found.results)
    return [Launch(kernel, buffers, tuple(dims), work(op))]


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
        streams = streams_of(op)
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
        strides = token_strides(source, layouts)
        assert strides is not None, "checked above"
        dims += [*strides, *out_strides(op, out, layouts, written=stream.cached)]
        buffers += [source, out]
        if stream.name in "qk":
            pair = (op.q_weight, op.q_bias) if stream.name == "q" else (op.k_weight, op.k_bias)
            buffers += [v for v in pair if v is not None]
    for table in tables:
        dims += table_strides(table, batch, layouts)
    buffers += tables
    if cached:
        buffers.append(op.index)
        dims.append(op.k_cache.shape[2])
    return [Launch(kernel, tuple(buffers), tuple(dims), work(op))]


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
