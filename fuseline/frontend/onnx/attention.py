"""Attention and rotary embeddings of the standard, as the raised ops that kernels are made for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fuseline.frontend.onnx.data import dtype_of
from fuseline.frontend.onnx.elementwise import add, mul
from fuseline.frontend.onnx.matmul import swapped
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.frontend.onnx.view import pad_axis
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Iota
from fuseline.ir.ops.index import Index
from fuseline.ir.ops.matmul import Matmul
from fuseline.ir.ops.raised import Attention, Rope
from fuseline.ir.ops.reduce import All, Softmax
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import Dim, DType, dim, floor_div


def split_heads(n: Node, x: Value, heads: int) -> Value:
    """``[B, S, H * D]`` as ``[B, H, S, D]``."""
    batch, length, width = x.shape
    if not isinstance(width, int):
        raise Unsupported(f"{width} columns of heads")
    return n.b.permute(n.b.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def join_heads(n: Node, x: Value) -> Value:
    """``[B, H, S, D]`` as ``[B, S, H * D]``."""
    batch, heads, length, width = x.shape
    return n.b.reshape(n.b.permute(x, (0, 2, 1, 3)), (batch, length, dim(heads * width)))


def appended(n: Node, past: Value | None, x: Value) -> Value:
    """Keys or values behind those of earlier tokens."""
    if past is None or past.shape[2] == 0:
        return x
    return n.b.add(Concat((past, x), axis=2)).y


def counted(n: Node, length: Dim, start: Dim = 0) -> Value:
    """``start, start + 1, ...``"""
    return n.b.add(Iota(length=length, start=start)).y


@dataclass
class Asked:
    """What an attention operator asks for; q, k and v are ``[B, H, S, D]``."""

    q: Value
    k: Value
    v: Value
    scale: float
    mask: Value | None = None
    positions: Value | None = None
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: Value | None = None


def attend(n: Node, a: Asked) -> Value:
    """The raised op."""
    op = Attention(
        a.q, a.k, a.v, a.mask, a.positions, a.sinks,
        scale=a.scale, causal=a.causal, window=a.window, softcap=a.softcap,
    )  # fmt: skip
    return n.b.add(op).y


def both(n: Node, one: Value | None, other: Value) -> Value:
    """Two masks as one: a place is seen where both let it be."""
    if one is None:
        return other
    if one.dtype is DType.BOOL:
        return n.b.add(p.LogicalAnd(one, other)).y
    zero, never = n.full(0, one), n.full(-math.inf, one)
    return add(n, one, n.b.add(p.Where(other, zero, never)).y)


@onnx_op("Attention", since=23)
def _attention(n: Node) -> list[Value | None]:
    q, k, v = n.x(0), n.x(1), n.x(2)
    flat = q.tensor.rank == 3
    if flat:
        heads, groups = n.attr("q_num_heads"), n.attr("kv_num_heads")
        if not heads or not groups:
            raise Unsupported("operands of three dims without q_num_heads and kv_num_heads")
        q = split_heads(n, q, heads)
        k, v = split_heads(n, k, groups), split_heads(n, v, groups)
    past = n.opt(4)
    k, v = appended(n, past, k), appended(n, n.opt(5), v)
    width = q.shape[-1]
    scale = n.attr("scale") or (1 / math.sqrt(width) if isinstance(width, int) and width else 1.0)
    asked = Asked(q, k, v, float(scale), softcap=n.attr("softcap", 0.0) or None)
    _mask(n, asked, past)
    detailed = n.wants(3) or asked.q.dtype is DType.F64
    precision = n.attr("softmax_precision")
    if precision and dtype_of(precision) is DType.F64:
        detailed = True
    details: Value | None = None
    if detailed:
        y, details = _spelled(n, asked, n.attr("qk_matmul_output_mode", 0))
    else:
        y = attend(n, asked)
    return [join_heads(n, y) if flat else y, k, v, details]


def _mask(n: Node, a: Asked, past: Value | None) -> None:
    """Masks, windows, and the places of queries among the keys."""
    queries, keys = a.q.shape[2], a.k.shape[2]
    mask = n.opt(3)
    if mask is not None:
        never = False if mask.dtype is DType.BOOL else -math.inf
        short = dim(keys - mask.shape[-1])
        if isinstance(short, int) and short > 0:
            mask = pad_axis(n, mask, mask.tensor.rank - 1, 0, short, value=never)
    places = n.b.reshape(counted(n, keys), (1, 1, 1, keys))
    start: Value | None = None
    if n.has(6):
        valid = n.b.cast(n.x(6), DType.I64)
        valid = n.b.reshape(valid, (valid.shape[0], 1, 1, 1))
        mask = both(n, mask, n.b.add(p.Lt(places, valid)).y)
        if past is None:
            start = n.b.add(p.Sub(valid, n.full(queries, DType.I64))).y
    left, right = n.attr("left_window_size", -1), n.attr("right_window_size", -1)
    a.causal = bool(n.attr("is_causal", 0))
    if a.causal or left >= 0 or right >= 0:
        before = 0 if past is None else past.shape[2]
        a.positions = counted(n, queries, before)
        if start is not None:
            first = n.b.reshape(start, (start.shape[0], 1))
            a.positions = n.b.add(p.Add(first, a.positions)).y
        elif before == 0:
            a.positions = None if left < 0 and right < 0 else a.positions
    if left >= 0:
        a.window = left + 1
    if right >= 0 and a.positions is not None:
        rows = a.positions
        batch = rows.shape[0] if rows.tensor.rank == 2 else 1
        rows = n.b.reshape(rows, (batch, 1, queries, 1))
        last = n.b.add(p.Add(rows, n.full(right, DType.I64))).y
        mask = both(n, mask, n.b.add(p.Le(places, last)).y)
    a.mask = mask


def _spelled(n: Node, a: Asked, mode: int) -> tuple[Value, Value]:
    """Attention by single ops, with the scores, softcapped or masked ones, or weights."""
    heads, queries = a.q.shape[1:3]
    groups, keys = a.k.shape[1], a.k.shape[2]
    if heads != groups:
        times = floor_div(heads, groups)
        a.k, a.v = (_repeated(n, x, times) for x in (a.k, a.v))
    wide = a.q.dtype if a.q.dtype is DType.F64 else DType.F32
    q, k = n.b.cast(a.q, wide), n.b.cast(a.k, wide)
    scores = mul(n, _matmul(n, q, swapped(n, k)), a.scale)
    stages = [scores]
    if a.softcap:
        scores = mul(n, n.b.add(p.Tanh(mul(n, scores, 1 / a.softcap))).y, a.softcap)
    stages.append(scores)
    never = n.full(-math.inf, scores)
    for seen in _seen(n, a, queries, keys):
        scores = n.b.add(p.Where(seen, scores, never)).y
    if a.mask is not None and a.mask.dtype is not DType.BOOL:
        scores = add(n, scores, n.b.cast(a.mask, wide))
    stages.append(scores)
    weights = n.b.add(Softmax(scores, axis=3)).y
    unseen = n.b.add(p.Eq(scores, never)).y
    empty = n.b.add(All(unseen, axes=(3,), keepdim=True)).y
    weights = n.b.add(p.Where(empty, n.full(0, weights), weights)).y
    stages.append(weights)
    y = _matmul(n, weights, n.b.cast(a.v, wide))
    return n.b.cast(y, a.q.dtype), n.b.cast(stages[mode], a.q.dtype)


def _matmul(n: Node, lhs: Value, rhs: Value) -> Value:
    return n.b.add(Matmul(lhs, rhs)).y


def _repeated(n: Node, x: Value, times: Any) -> Value:
    batch, heads, length, width = x.shape
    x = n.b.reshape(x, (batch, heads, 1, length, width))
    x = n.b.expand(x, (batch, heads, times, length, width))
    return n.b.reshape(x, (batch, dim(heads * times), length, width))


def _seen(n: Node, a: Asked, queries: Dim, keys: Dim) -> list[Value]:
    """What a query may see, one mask for each reason."""
    found: list[Value] = []
    if a.mask is not None and a.mask.dtype is DType.BOOL:
        found.append(a.mask)
    if not a.causal and a.window is None:
        return found
    rows = counted(n, queries) if a.positions is None else a.positions
    rows = n.b.reshape(rows, (rows.shape[0] if rows.tensor.rank == 2 else 1, 1, queries, 1))
    places = counted(n, keys)
    if a.causal:
        found.append(n.b.add(p.Le(places, rows)).y)
    if a.window is not None:
        first = n.b.add(p.Sub(rows, n.full(a.window, DType.I64))).y
        found.append(n.b.add(p.Gt(places, first)).y)
    return found


# -- rotary embeddings ----------------------------------------------------------------------


def rotate(
    n: Node, x: Value, cos: Value, sin: Value, *, interleaved: bool, width: int | None
) -> Value:
    """x ``[B, H, S, D]`` turned by tables ``[B, S, width / 2]`` (or ``[S, width / 2]``)."""
    half = cos.shape[-1]
    if not isinstance(half, int):
        raise Unsupported(f"rotary tables of {half} columns")
    size = width or x.shape[-1]
    if size != 2 * half:
        raise Unsupported(f"rotary tables of {half} columns for {size} elements")
    cos, sin = (
        n.b.reshape(t, (t.shape[0] if t.tensor.rank == 3 else 1, 1, *t.shape[-2:]))
        for t in (cos, sin)
    )
    style: Any = "interleaved" if interleaved else "half"
    return n.b.add(Rope(x, cos, sin, style=style, table="half", width=2 * half)).y


def rows_at(n: Node, table: Value, positions: Value) -> Value:
    """Rows of a table ``[P, W]`` at positions ``[B, S]``."""
    return n.b.add(Index(table, (n.b.cast(positions, DType.I64),), axes=(0,))).y


@onnx_op("RotaryEmbedding", since=23)
def _rotary(n: Node) -> Value:
    x, cos, sin = n.x(0), n.x(1), n.x(2)
    flat = x.tensor.rank == 3
    if flat:
        if not n.attr("num_heads", 0):
            raise Unsupported("an operand of three dims without num_heads")
        x = split_heads(n, x, n.attr("num_heads"))
    if n.has(3):
        cos, sin = rows_at(n, cos, n.x(3)), rows_at(n, sin, n.x(3))
    width = n.attr("rotary_embedding_dim", 0) or None
    y = rotate(n, x, cos, sin, interleaved=bool(n.attr("interleaved", 0)), width=width)
    return join_heads(n, y) if flat else y


__all__ = ["Asked", "appended", "attend", "both", "counted", "join_heads", "rotate", "rows_at",
           "split_heads"]  # fmt: skip
