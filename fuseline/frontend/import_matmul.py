"""Imports matrix products, attention, and the norms that torch has as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuseline import _torch
from fuseline.frontend.builder import Builder, imports
from fuseline.ir.core import Value
from fuseline.ir.ops.matmul import GroupedMatmul, Linear, Matmul, Sdpa
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.types import Dim


@imports("aten.linear.default")
def _linear(b: Builder, x: Value, weight: Value, bias: Value | None = None) -> Any:
    if weight.tensor.rank != 2:
        return NotImplemented
    return b.add(Linear(x, weight, bias)).y


@imports("aten.mm.default", "aten.bmm.default")
def _mm(b: Builder, lhs: Value, rhs: Value) -> Value:
    return b.add(Matmul(lhs, rhs)).y


@imports("aten.matmul.default")
def _matmul(b: Builder, lhs: Value, rhs: Value) -> Any:
    if lhs.tensor.rank < 2 or rhs.tensor.rank < 2:
        return NotImplemented
    return b.add(Matmul(lhs, rhs)).y


@imports("aten.addmm.default")
def _addmm(b: Builder, bias: Value, x: Value, weight: Value, beta: Any = 1, alpha: Any = 1) -> Any:
    """``x @ weight + bias``: a linear of the transposed weight, as torch computes that."""
    if (beta, alpha) != (1, 1) or bias.shape != weight.shape[1:]:
        return NotImplemented
    return b.add(Linear(x, b.permute(weight, (1, 0)), bias)).y


@imports("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
def _grouped_mm(
    b: Builder,
    x: Value,
    weight: Value,
    offs: Value | None = None,
    bias: Value | None = None,
    out_dtype: Any = None,
) -> Any:
    if offs is None or bias is not None or out_dtype is not None:
        return NotImplemented
    if (x.tensor.rank, weight.tensor.rank) != (2, 3) or x.dtype is not weight.dtype:
        return NotImplemented
    return b.add(GroupedMatmul(x, weight, offs)).y


@imports("aten.scaled_dot_product_attention.default")
def _attention(
    b: Builder,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p:
        return NotImplemented
    op = Sdpa(q, k, v, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    return b.add(op).y


@imports("aten.rms_norm.default")
def _rms_norm(
    b: Builder,
    x: Value,
    shape: Sequence[Dim],
    weight: Value | None = None,
    eps: float | None = None,
) -> Any:
    """torch computes in float32 (the weight too) and rounds once."""
    if len(shape) != 1 or (weight is not None and weight.dtype is not x.dtype):
        return NotImplemented
    eps = _torch.default_norm_eps(x.dtype.torch) if eps is None else eps
    return b.add(RmsNorm(x, weight, eps=eps, cast="last")).y


@imports("aten.layer_norm.default")
def _layer_norm(
    b: Builder,
    x: Value,
    shape: Sequence[Dim],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    mixed = any(v is not None and v.dtype is not x.dtype for v in (weight, bias))
    if len(shape) != 1 or mixed:
        return NotImplemented
    return b.add(LayerNorm(x, weight, bias, eps=eps)).y
