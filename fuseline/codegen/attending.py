"""What attention reads and how it scores, for every target."""

from __future__ import annotations

from typing import Any

from fuseline.codegen.lower import FLOATS, NeedDense, Refusal, dtype_name
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.raised import Attention
from fuseline.ir.types import Dim, DType


def refused_attention(op: Attention) -> Refusal | None:
    """Why no kernel takes the operands of an attention."""
    if op.q.dtype not in FLOATS or {op.q.dtype} != {op.k.dtype, op.v.dtype}:
        return Refusal(f"q {op.q.type}, k {op.k.type}, v {op.v.type}")
    sizes = (op.q.shape[1], op.q.shape[3], op.k.shape[1], op.v.shape[3])
    if not all(isinstance(s, int) and s for s in sizes):
        return Refusal(f"q {op.q.type}, v {op.v.type}; the kernel needs known heads and head dims")
    return refused_mask(op)


def refused_latent(op: LatentAttention, layouts: LayoutMap) -> Refusal | None:
    """Why no kernel takes the operands of a latent attention."""
    weights = [v for v in (op.weight, op.value_weight) if v is not None]
    operands = [v for v in (op.q, op.latent, *weights, op.shared) if v is not None]
    types = ", ".join(str(v.type) for v in operands)
    if op.q.dtype not in FLOATS or {v.dtype for v in operands} != {op.q.dtype}:
        return Refusal(f"{types}; the kernel takes one floating type")
    sizes = (op.q.shape[1], op.q.shape[3], op.latent.shape[3], op.key, op.value)
    if not all(isinstance(s, int) and s for s in sizes):
        return Refusal(f"{types}; the kernel needs known heads and widths")
    for weight in weights:
        if not layouts.layout(weight).is_dense(weight.shape):
            return Refusal(f"weight {weight.type} does not lie row by row in memory")
    return refused_mask(op)


def refused_mask(op: Attention | LatentAttention) -> Refusal | None:
    """Why no kernel takes the mask or the positions."""
    if op.mask is not None and op.mask.tensor.rank > 4:
        return Refusal(f"mask {op.mask.type}")
    if op.mask is not None and op.mask.dtype not in (*FLOATS, DType.BOOL):
        return Refusal(f"mask {op.mask.type}")
    if op.positions is not None and op.positions.dtype is not DType.I64:
        return Refusal(f"positions {op.positions.type}; the kernel takes i64")
    return None


def loose_operands(op: Attention | LatentAttention, layouts: LayoutMap) -> NeedDense | None:
    """The operands whose last dim does not lie side by side; None where all do."""
    read = (op.k, op.v) if isinstance(op, Attention) else (op.latent, op.shared)
    operands = (op.q, *read, op.positions, op.sinks)
    loose = [v for v in operands if v is not None and not layouts.layout(v).is_inner_dense(v.shape)]
    return NeedDense(tuple(loose)) if loose else None


def scoring(op: Attention | LatentAttention) -> dict[str, Any]:
    """The fields that say how scores are made; every target's context has them."""
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


def known(value: Dim) -> int:
    """A dim that a refusal has checked to be known."""
    assert isinstance(value, int), f"{value} is not known"
    return value
