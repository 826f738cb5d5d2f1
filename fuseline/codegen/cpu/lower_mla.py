"""Lowering of what stands before attention over a latent."""

from __future__ import annotations

from fuseline.codegen.cpu.mla_projection import mla_projection
from fuseline.codegen.heads import Stream, rotation_of
from fuseline.codegen.lower import (
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    dtype_name,
    lowers,
    unsupported,
    work,
)
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.types import Dim

Projection = MlaProjection | MlaProjectionWrite


@lowers(MlaProjection, MlaProjectionWrite)
def lower_mla_projection(op: Projection, layouts: LayoutMap) -> Lowered:
    """One launch over the rows that the op has."""
    if refusal := unsupported(*op.rows, op.latent_weight, op.q_weight, op.cos, op.sin):
        return refusal
    tables = [t for t in (op.cos, op.sin) if t is not None]
    loose = [v for v in (*op.rows, *tables) if not layouts.layout(v).is_inner_dense(v.shape)]
    if loose:
        return NeedDense(tuple(loose))
    if any(len(t.shape) != 3 for t in tables):
        return Refusal("tables that are not [B, S, W]")
    if not op.norm and op.scale != 1.0:
        return Refusal("a scale without a norm")
    latent, shared, q = (_stream(op, name) for name in ("latent", "shared", "q"))
    streams = [s for s in (latent, shared, q) if s is not None]
    if len(streams) != len(op.rows):
        return Refusal(f"rows of unknown width: {', '.join(str(v.type) for v in op.rows)}")
    try:
        kernel = mla_projection(
            op.rows[0].dtype.value,
            latent=latent,
            shared=shared,
            q=q,
            rotation=rotation_of(op),
            eps=op.eps,
            offset=op.offset,
            cast=op.cast,
        )
    except ValueError as error:
        return Refusal(str(error))
    batch, tokens = op.rows[0].shape[:2]
    dims: list[Dim] = [batch, tokens]
    buffers: list[Value] = []
    for stream, row, out in zip(streams, op.rows, _outs(op), strict=True):
        dims += [*_strides(row, layouts), *_strides(out, layouts)]
        weight = {"latent": op.latent_weight, "q": op.q_weight}.get(stream.name)
        buffers += [row, out, *([] if weight is None else [weight])]
    for value in tables:
        b, t, _ = layouts.layout(value).strides
        dims += [0 if value.shape[0] == 1 and batch != 1 else b, t]
    buffers += tables
    if isinstance(op, MlaProjectionWrite):
        assert op.index is not None, "checked by the op"
        assert op.latent_cache is not None, "checked by the op"
        buffers.append(op.index)
        dims.append(op.latent_cache.shape[-2])
    return [Launch(kernel, tuple(buffers), tuple(dims), work(op))]


def _stream(op: Projection, name: str) -> Stream | None:
    """What is done to one row; None where it is absent or of unknown width."""
    row: Value | None = getattr(op, name)
    if row is None or not isinstance(width := row.shape[-1], int):
        return None
    cached = isinstance(op, MlaProjectionWrite)
    if name == "shared":
        return Stream(name, 1, width, normed=False, roped=op.cos is not None, cached=cached)
    if name == "q":
        return Stream(name, 1, width, roped=False, weight=dtype_name(op.q_weight))
    return Stream(
        name,
        1,
        width,
        normed=op.norm,
        roped=False,
        weight=dtype_name(op.latent_weight) if op.norm else None,
        cached=cached,
        scale=op.scale,
    )


def _outs(op: Projection) -> list[Value]:
    """Where the rows go: results or caches, in the order of the rows."""
    if isinstance(op, MlaProjection):
        return list(op.ys)
    caches = [c for c in (op.latent_cache, op.shared_cache) if c is not None]
    return [*caches, *op.ys]


def _strides(value: Value, layouts: LayoutMap) -> tuple[Dim, Dim, Dim]:
    """Strides of batch and token of rows ``[B, S, W]``, or of a cache; there is one head."""
    strides = layouts.layout(value).strides
    return strides[0], strides[-2], 0
