"""Attention: the standard operator where it says the same, else a function of primitive ones.

Scores and softmax are float32, so narrower queries, keys and values are widened. A row that sees no
key gives zeros; the standard does not say what it gives, so such rows are set to 0 where there is a
mask. Its scale is a float32, of which it takes the root, so it is not used for float64 and for a
scale that is not positive.
"""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.exporting.onnx.pointwise import wide
from fuseline.exporting.onnx.reduce import reduced
from fuseline.exporting.onnx.registry import emits, expanded, expands
from fuseline.exporting.onnx.view import expanded as broadcasted
from fuseline.exporting.onnx.writer import Writer
from fuseline.frontend.builder import Builder
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.matmul import Linear, Matmul, Sdpa
from fuseline.ir.ops.raised import Attention
from fuseline.ir.ops.reduce import All, Softmax
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import Dim, DType, floor_div, same


@emits(Attention)
def _attention(w: Writer, op: Attention) -> Sequence[str]:
    simple = _is_standard(op) and op.positions is None and op.window is None
    simple = simple and not (op.causal and op.mask is not None)
    return [_operator(w, op)] if simple else w.call(op, expanded)


def _is_standard(op: Attention) -> bool:
    """Whether the standard operator, under the right mask, computes it."""
    exact = op.q.dtype is not DType.F64 and op.scale > 0
    return exact and op.sinks is None and op.softcap is None


def _operator(w: Writer, op: Attention) -> str:
    """The standard operator, under at most one of a mask and causality."""
    kind = wide(op.q.dtype)
    q, k, v = (w.of(value, kind) for value in (op.q, op.k, op.v))
    given, seen = _mask(w, op.mask, op, kind) if op.mask is not None else ([], None)
    y = w.node(
        "Attention", q, k, v, *given, scale=float(op.scale), is_causal=int(op.causal) or None
    )
    if seen is not None:
        y = w.node("Where", seen, y, w.scalar(0, kind))
    return w.cast(y, kind, op.y.dtype)


def _mask(w: Writer, mask: Value, op: Attention, kind: DType) -> tuple[list[str], str]:
    """The mask over all queries and keys, and whether a query sees a key ``[.., Sq, 1]``."""
    pairs = (op.q.shape[2], op.k.shape[2])
    want: tuple[Dim, ...] = (*mask.shape[:-2], *pairs)
    isbool = mask.dtype is DType.BOOL
    name = w[mask] if isbool else w.of(mask, kind)
    have = mask.shape
    if len(have) < 2:
        have = (1,) * (2 - len(have)) + have
        name = w.node("Reshape", name, w.sizes(have))
        want = pairs
    name = broadcasted(w, name, have, want)
    open_ = name if isbool else w.node("Greater", name, w.scalar(float("-inf"), kind))
    count = w.cast(open_, DType.BOOL, DType.I32)
    seen = reduced(w, "ReduceSum", count, (len(want) - 1,), keepdim=True)
    return [name], w.cast(seen, DType.I32, DType.BOOL)


@expands(Attention, called=False)
def _attend(b: Builder, op: Attention) -> Value:
    """The standard operator under one mask that says all; without it for what it does not have."""
    if not _is_standard(op):
        return _spelled_out(b, op)
    mask, seen = op.mask, _seen(b, op)
    if mask is None:
        mask = seen
    elif seen is not None and mask.dtype is DType.BOOL:
        mask = b.add(p.LogicalAnd(mask, seen)).y
    elif seen is not None:
        mask = b.add(p.Where(seen, mask, b.full(float("-inf"), mask.dtype))).y
    return b.add(Attention(op.q, op.k, op.v, mask, None, None, scale=op.scale)).y


def _spelled_out(b: Builder, op: Attention) -> Value:
    """As `fuseline.ir.ops.raised.attention_reference`."""
    kind = wide(op.q.dtype)
    q, k, v = (b.cast(t, kind) for t in (op.q, op.k, op.v))
    heads = q.shape[1]
    keys, values = _repeated(b, k, heads), _repeated(b, v, heads)
    scores = b.add(Matmul(q, b.permute(keys, (0, 1, 3, 2)))).y
    scores = b.add(p.Mul(scores, b.full(op.scale, kind))).y
    if op.softcap is not None:
        cap = b.full(op.softcap, kind)
        scores = b.add(p.Mul(b.add(p.Tanh(b.add(p.Div(scores, cap)).y)).y, cap)).y
    lowest = b.full(float("-inf"), kind)
    if op.mask is not None and op.mask.dtype is DType.BOOL:
        scores = b.add(p.Where(op.mask, scores, lowest)).y
    elif op.mask is not None:
        scores = b.add(p.Add(scores, b.cast(op.mask, kind))).y
    seen = _seen(b, op)
    if seen is not None:
        scores = b.add(p.Where(seen, scores, lowest)).y
    length = scores.shape[-1]
    if op.sinks is not None:
        column = b.reshape(b.cast(op.sinks, kind), (1, heads, 1, 1))
        column = b.expand(column, (*scores.shape[:3], 1))
        scores = b.add(Concat((scores, column), axis=3)).y
    empty = b.add(All(b.add(p.Eq(scores, lowest)).y, axes=(3,), keepdim=True)).y
    weights = b.add(p.Where(empty, b.full(0.0, kind), b.add(Softmax(scores, axis=3)).y)).y
    weights = b.slice(weights, 3, 0, length)
    return b.cast(b.add(Matmul(weights, values)).y, op.q.dtype)


def _repeated(b: Builder, x: Value, heads: Dim) -> Value:
    """Keys or values with one head for each query head."""
    batch, own, length, width = x.shape
    if same(own, heads):
        return x
    group = floor_div(heads, own)
    apart = b.reshape(x, (batch, own, 1, length, width))
    wide_ = b.expand(apart, (batch, own, group, length, width))
    return b.reshape(wide_, (batch, heads, length, width))


def _seen(b: Builder, op: Attention) -> Value | None:
    """Which keys queries see by causality and window: ``[.., Sq, Sk]``."""
    if not op.causal and op.window is None:
        return None
    rows, length = op.q.shape[2], op.k.shape[2]
    at = op.positions or b.add(Iota(length=rows)).y
    batch: tuple[Dim, ...] = (at.shape[0],) if at.tensor.rank == 2 else (1,)
    at = b.reshape(b.cast(at, DType.I64), (*batch, 1, rows, 1))
    keys = b.add(Iota(length=length)).y
    found: Value | None = b.add(p.Le(keys, at)).y if op.causal else None
    if op.window is not None:
        first = b.add(p.Sub(at, b.full(op.window, DType.I64))).y
        near = b.add(p.Gt(keys, first)).y
        found = near if found is None else b.add(p.LogicalAnd(found, near)).y
    return found


@expands(LatentAttention)
def _latent(b: Builder, op: LatentAttention) -> Value:
    """As `fuseline.ir.ops.latent.expand_latent`, and attention over that."""

    def heads(weight: Value, each: int) -> Value:
        batch, _, length, _ = op.latent.shape
        rows = b.add(Linear(op.latent, weight, None)).y
        apart = b.reshape(rows, (batch, length, op.groups, each))
        return b.permute(apart, (0, 2, 1, 3))

    if op.value_weight is None:
        both = heads(op.weight, op.key + op.value)
        keys = b.slice(both, 3, 0, op.key)
        values = b.slice(both, 3, op.key, op.key + op.value)
    else:
        keys, values = heads(op.weight, op.key), heads(op.value_weight, op.value)
    if op.shared is not None:
        width = op.shared.shape[-1]
        shared = b.expand(op.shared, (*keys.shape[:-1], width))
        keys = b.add(Concat((keys, shared), axis=3)).y
    attention = Attention(
        op.q, keys, values, op.mask, op.positions, op.sinks, scale=op.scale, causal=op.causal,
        window=op.window, softcap=op.softcap,
    )  # fmt: skip
    return b.add(attention).y


@expands(Sdpa)
def _sdpa(b: Builder, op: Sdpa) -> Value:
    """torch's attention, of ``[.., S, D]``: the dims before heads become one."""
    q, k, v = op.q, op.k, op.v
    width = q.shape[-1]
    scale = op.scale
    if scale is None:
        assert isinstance(width, int), "the head dim is known"
        scale = width**-0.5
    mask = op.mask
    if q.tensor.rank == 3:
        q, k, v = (b.reshape(t, (t.shape[0], 1, *t.shape[1:])) for t in (q, k, v))
        if mask is not None and mask.tensor.rank == 3:
            mask = b.reshape(mask, (mask.shape[0], 1, *mask.shape[1:]))
    attention = Attention(q, k, v, mask, None, None, scale=scale, causal=op.is_causal)
    return b.reshape(b.add(attention).y, op.y.shape)
