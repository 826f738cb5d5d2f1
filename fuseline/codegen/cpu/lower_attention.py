"""Lowerings onto the attention kernels."""

from __future__ import annotations

from typing import Any

from fuseline.codegen.cpu.attention import (
    SCRATCH_HEADER,
    AttentionKernel,
    BlockedAttentionKernel,
    DecodeAttentionKernel,
)
from fuseline.codegen.forms import Form, When
from fuseline.codegen.lower import (
    FLOATS,
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    Scratch,
    dtype_name,
    lowers,
    work,
)
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.raised import Attention
from fuseline.ir.types import Dim, DType, bounds, dim, product

FEW_ROWS = 8
"""Query rows a key head up to which keys are streamed once for all of them."""

SPLITS = 8
"""Into how many parts the keys of a unit may be cut, where there are few units."""


@lowers(Attention)
def lower_attention(op: Attention, layouts: LayoutMap) -> Lowered:
    """Grouped attention; few query rows and many have kernels of their own."""
    if refusal := _refusal(op):
        return refusal
    moved = (op.q, op.k, op.v)
    loose = [v for v in moved if not layouts.layout(v).is_inner_dense(v.shape)]
    loose += [v for v in (op.positions, op.sinks) if v is not None and not _dense(v, layouts)]
    if loose:
        return NeedDense(tuple(loose))
    heads, groups, queries = op.q.shape[1], op.k.shape[1], op.q.shape[2]
    assert isinstance(heads, int), "checked by _refusal"
    assert isinstance(groups, int), "checked by _refusal"
    rows = dim(heads // groups * queries)
    low, high = bounds(rows, layouts.func.symbols)
    launches: list[Launch] = []
    if low <= FEW_ROWS:
        when = None if high is not None and high <= FEW_ROWS else (rows, 0, FEW_ROWS)
        launches += _launch(op, DecodeAttentionKernel, layouts, when)
    if high is None or high > FEW_ROWS:
        when = None if low > FEW_ROWS else (rows, FEW_ROWS + 1, None)
        launches += _launch(op, BlockedAttentionKernel, layouts, when)
    return launches


def _dense(value: Value, layouts: LayoutMap) -> bool:
    return layouts.layout(value).is_inner_dense(value.shape)


def _refusal(op: Attention) -> Refusal | None:
    if op.q.dtype not in FLOATS or {op.q.dtype} != {op.k.dtype, op.v.dtype}:
        return Refusal(f"q {op.q.type}, k {op.k.type}, v {op.v.type}")
    sizes = (op.q.shape[1], op.q.shape[3], op.k.shape[1], op.v.shape[3])
    if not all(isinstance(s, int) and s for s in sizes):
        return Refusal(f"q {op.q.type}, v {op.v.type}; the kernel needs known heads and head dims")
    return refused_mask(op)


def _launch(
    op: Attention,
    kind: type[AttentionKernel],
    layouts: LayoutMap,
    when: When,
) -> list[Launch]:
    batch, heads, queries, width = op.q.shape
    groups, value_width = op.k.shape[1], op.v.shape[3]
    assert isinstance(heads, int)
    assert isinstance(groups, int)
    assert isinstance(width, int)
    assert isinstance(value_width, int)
    kernel = kind(
        **scoring(op),
        group=heads // groups,
        width=width,
        value_width=value_width,
        max_splits=SPLITS if kind is DecodeAttentionKernel else 1,
    )
    dims: list[Dim] = [batch, groups, queries, op.k.shape[2]]
    for value in (op.q, op.k, op.v, op.y):
        dims += layouts.layout(value).strides[:3]
    dims += mask_strides(op, op.k.shape[2], layouts)
    buffers: list[Value | Scratch] = [op.q, op.k, op.v]
    buffers += [v for v in (op.mask, op.positions, op.sinks) if v is not None]
    buffers.append(op.y)
    if kernel.max_splits > 1:
        rows = product((batch, heads, queries))
        size = SCRATCH_HEADER + kernel.max_splits * rows * kernel.partial_row * 4
        buffers.append(Scratch(dim(size)))
    words = "keys streamed" if kind is DecodeAttentionKernel else "in blocks"
    form = Form("attention", words, "query rows of a key head")
    return [Launch(k, tuple(buffers), tuple(dims), work(op), when, form) for k in kernel.launches()]


def refused_mask(op: Attention | LatentAttention) -> Refusal | None:
    """Why no kernel takes the mask or the positions."""
    if op.mask is not None and op.mask.tensor.rank > 4:
        return Refusal(f"mask {op.mask.type}")
    if op.mask is not None and op.mask.dtype not in (*FLOATS, DType.BOOL):
        return Refusal(f"mask {op.mask.type}")
    if op.positions is not None and op.positions.dtype is not DType.I64:
        return Refusal(f"positions {op.positions.type}; the kernel takes i64")
    return None


def scoring(op: Attention | LatentAttention) -> dict[str, Any]:
    """The fields that say how scores are made, in the terms of `AttentionKernel`."""
    return {
        "dtype": op.q.dtype.value,
        "scale": op.scale,
        "causal": op.causal,
        "positions": op.positions is not None,
        "window": op.window,
        "softcap": op.softcap,
        "mask": dtype_name(op.mask),
        "sinks": dtype_name(op.sinks),
    }


def mask_strides(op: Attention | LatentAttention, keys: Dim, layouts: LayoutMap) -> list[Dim]:
    """The strides of the mask, and of the positions, where there are any."""
    batch, heads, queries, _ = op.q.shape
    strides: list[Dim] = []
    if op.mask is not None:
        strides += broadcast_strides(op.mask, (batch, heads, queries, keys), layouts)
    if op.positions is not None:
        strides += broadcast_strides(op.positions, (batch, queries), layouts)[:1]
    return strides


def broadcast_strides(value: Value, shape: tuple[Dim, ...], layouts: LayoutMap) -> list[Dim]:
    """The strides of a value against a shape; 0 along dims that it lacks or repeats."""
    missing = len(shape) - value.tensor.rank
    strides: list[Dim] = [0] * missing
    own = zip(value.shape, layouts.layout(value).strides, shape[missing:], strict=True)
    return strides + [0 if have == 1 and want != 1 else stride for have, stride, want in own]
