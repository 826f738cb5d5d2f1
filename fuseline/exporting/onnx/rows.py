"""Norms and rotations of the rows of a token: queries and keys, and the parts of a latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuseline.exporting.onnx.pointwise import wide
from fuseline.exporting.onnx.registry import expands
from fuseline.frontend.builder import Builder
from fuseline.ir.core import Op, Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.fused import QkNormRope
from fuseline.ir.ops.mla_projection import MlaProjection
from fuseline.ir.ops.raised import LayerNorm, RmsNorm, Rope
from fuseline.ir.types import product

_ROPE = ("style", "table", "start", "width", "sign", "round")


def _attributes(op: Op, names: Sequence[str]) -> dict[str, Any]:
    return {name: op.attributes[name] for name in names}


@expands(QkNormRope)
def _qk_norm_rope(b: Builder, op: QkNormRope) -> tuple[Value, Value]:
    return (
        _norm_and_rotate(b, op, op.q, op.q_weight, op.q_bias),
        _norm_and_rotate(b, op, op.k, op.k_weight, op.k_bias),
    )


def _norm_and_rotate(
    b: Builder, op: QkNormRope, x: Value, weight: Value | None, bias: Value | None
) -> Value:
    if op.order == "norm_rope":
        x = _rotated(b, op, _normed(b, op, x, weight, bias))
    else:
        x = _normed(b, op, _rotated(b, op, x), weight, bias)
    return b.permute(x, (0, 2, 1, 3)) if op.out == "bhsd" else x


def _normed(
    b: Builder, op: QkNormRope, x: Value, weight: Value | None, bias: Value | None
) -> Value:
    if op.norm == "none":
        return x
    shape = x.shape
    rows = b.reshape(x, (*shape[:2], product(shape[2:]))) if op.scope == "row" else x
    weight, bias = (_fitting(b, t, rows) for t in (weight, bias))
    if op.norm == "layer":
        y = b.add(LayerNorm(rows, weight, bias, eps=op.eps, cast=op.cast)).y
    elif weight is not None and weight.tensor.rank == 2:
        y = _by_head(b, op, rows, weight)
    else:
        y = b.add(RmsNorm(rows, weight, eps=op.eps, offset=op.offset, cast=op.cast)).y
    return b.reshape(y, shape)


def _fitting(b: Builder, weight: Value | None, rows: Value) -> Value | None:
    """A weight of one dim under the name that the rows have for its size."""
    return (
        weight if weight is None or weight.tensor.rank > 1 else b.reshape(weight, rows.shape[-1:])
    )


def _by_head(b: Builder, op: QkNormRope, x: Value, weight: Value) -> Value:
    """An RMS norm whose weight ``[H, D]`` is another for each head."""
    last = op.cast == "last"
    kind = wide(x.dtype) if last else x.dtype
    normal = b.add(RmsNorm(b.cast(x, kind), None, eps=op.eps)).y
    scale = b.cast(weight, wide(weight.dtype)) if last else weight
    if op.offset:
        scale = b.add(p.Add(b.scalar(op.offset, scale), scale)).y
    y = b.add(p.Mul(scale, normal)).y
    return b.cast(y, x.dtype) if last else y


def _rotated(b: Builder, op: QkNormRope, x: Value) -> Value:
    if op.cos is None or op.sin is None:
        return x
    return b.add(_turn(b, op, x, by_head=True)).y


def _turn(b: Builder, op: QkNormRope | MlaProjection, x: Value, *, by_head: bool) -> Rope:
    assert op.cos is not None, "there is a rotation"
    assert op.sin is not None, "there is a rotation"
    tables = [op.cos, op.sin]
    if by_head:
        tables = [b.reshape(t, (*t.shape[:2], 1, t.shape[2])) for t in tables]
    return Rope(x, *tables, **_attributes(op, _ROPE))


@expands(MlaProjection)
def _mla_projection(b: Builder, op: MlaProjection) -> list[Value]:
    norm: dict[str, Any] = _attributes(op, ("eps", "offset", "cast"))
    found: list[Value] = []
    if op.latent is not None:
        latent = op.latent
        if op.norm:
            latent = b.add(RmsNorm(latent, op.latent_weight, **norm)).y
        if op.scale != 1.0:
            latent = b.add(p.Mul(latent, b.scalar(op.scale, latent))).y
        found.append(latent)
    if op.shared is not None:
        turned = op.cos is not None
        found.append(b.add(_turn(b, op, op.shared, by_head=False)).y if turned else op.shared)
    if op.q is not None:
        found.append(b.add(RmsNorm(op.q, op.q_weight, **norm)).y)
    return found
