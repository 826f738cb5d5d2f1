"""Operators of onnxruntime that exporters of language models use."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fuseline.frontend.onnx.attention import (
    Asked,
    appended,
    attend,
    both,
    counted,
    join_heads,
    rotate,
    rows_at,
    split_heads,
)
from fuseline.frontend.onnx.elementwise import add, mul
from fuseline.frontend.onnx.matmul import product_of, swapped
from fuseline.frontend.onnx.node import Given, Node
from fuseline.frontend.onnx.registry import MICROSOFT, Unsupported, onnx_op
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.index import Scatter
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import DType, TensorType, dim

# -- activations and products ---------------------------------------------------------------


@onnx_op("Gelu", domain=MICROSOFT)
def _gelu(n: Node) -> Value:
    return n.b.add(p.Gelu(n.x())).y


@onnx_op("BiasGelu", domain=MICROSOFT)
def _bias_gelu(n: Node) -> Value:
    return n.b.add(p.Gelu(add(n, n.x(0), n.x(1)))).y


@onnx_op("FastGelu", domain=MICROSOFT)
def _fast_gelu(n: Node) -> Value:
    x = add(n, n.x(0), n.x(1)) if n.has(1) else n.x(0)
    return n.b.add(p.Gelu(x, approximate="tanh")).y


@onnx_op("QuickGelu", domain=MICROSOFT)
def _quick_gelu(n: Node) -> Value:
    x, alpha = n.x(), n.attr("alpha", 1.702)
    if alpha == 1:
        return n.b.add(p.Silu(x)).y
    return mul(n, x, n.b.add(p.Sigmoid(mul(n, x, alpha))).y)


@onnx_op("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def _fused_matmul(n: Node) -> Value:
    """``transBatch`` has the first dim of an operand in the place of the one before the last."""
    sides: list[Value] = []
    for index, name in ((0, "A"), (1, "B")):
        x = n.x(index)
        if n.attr(f"transBatch{name}", 0):
            rank = x.tensor.rank
            x = n.b.permute(x, [*range(1, rank - 1), 0, rank - 1])
        sides.append(swapped(n, x) if n.attr(f"trans{name}", 0) else x)
    y = product_of(n, *sides)
    alpha = n.attr("alpha", 1.0)
    return y if alpha == 1 else mul(n, y, alpha)


@onnx_op("MatMulNBits", domain=MICROSOFT)
def _matmul_nbits(n: Node) -> Value:
    """By weights that are dequantized when the model is imported."""
    x = n.x(0)
    bits, block = n.attr("bits", 4), n.attr("block_size")
    if bits not in (2, 4, 8):
        raise Unsupported(f"weights of {bits} bits")
    if n.has(4):
        raise Unsupported("groups of columns in an order of their own (g_idx)")
    weight = _dequantized(n, bits, block).to(x.dtype.torch)
    kind = TensorType(x.dtype, tuple(weight.shape))
    made = n.graph.value(Given(n.given(1).name, kind, tensor=weight, param=True))
    return n.b.add(Linear(x, made, n.opt(5))).y


def _dequantized(n: Node, bits: int, block: int) -> Tensor:
    """The weights ``[N, K]``: blocks of each row's columns, the first in the low bits."""
    rows, columns = n.attr("N"), n.attr("K")
    blocks = -(-columns // block)
    values = _unpacked(n.constant(1).reshape(rows, blocks, -1), bits)
    scales = n.constant(2).reshape(rows, blocks, 1).float()
    if not n.has(3):
        points: Tensor = torch.full((rows, blocks, 1), float(2 ** (bits - 1)))
    elif n.constant(3).is_floating_point():
        points = n.constant(3).reshape(rows, blocks, 1).float()
    else:
        points = _unpacked(n.constant(3).reshape(rows, -1), bits)[:, :blocks].unsqueeze(-1).float()
    return ((values.float() - points) * scales).reshape(rows, -1)[:, :columns].contiguous()


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)


# -- norms ----------------------------------------------------------------------------------


def _rms_norm(n: Node, x: Value, weight: Value) -> Value:
    eps = n.attr("epsilon", 1e-5)
    return n.b.add(RmsNorm(x, weight, eps=eps, cast="last")).y


@onnx_op("SimplifiedLayerNormalization", domain=MICROSOFT)
@onnx_op("SimplifiedLayerNormalization")
def _simplified_layer_norm(n: Node) -> list[Value | None]:
    x = n.x(0)
    if n.axis(-1) != x.tensor.rank - 1:
        raise Unsupported("a norm over several dims")
    if n.wants(1):
        raise Unsupported("the output inv_std_var")
    return [_rms_norm(n, x, n.x(1))]


def _with_skip(n: Node, bias: int) -> Value:
    total = add(n, n.x(0), n.x(1))
    return add(n, total, n.x(bias)) if n.has(bias) else total


@onnx_op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_simplified(n: Node) -> list[Value | None]:
    total = _with_skip(n, 3)
    return [_rms_norm(n, total, n.x(2)), None, None, total]


@onnx_op("SkipLayerNormalization", domain=MICROSOFT)
def _skip_layer_norm(n: Node) -> list[Value | None]:
    total = _with_skip(n, 4)
    norm = LayerNorm(total, n.x(2), n.opt(3), eps=n.attr("epsilon", 1e-12))
    return [n.b.add(norm).y, None, None, total]


# -- attention ------------------------------------------------------------------------------


@onnx_op("RotaryEmbedding", domain=MICROSOFT)
def _rotary(n: Node) -> Value:
    """Positions are one for each token, or the first of each batch (one element)."""
    x, positions, cos, sin = (n.x(i) for i in range(4))
    width, heads = n.attr("rotary_embedding_dim", 0) or None, n.attr("num_heads", 0)
    half = cos.shape[-1]
    flat = x.tensor.rank == 3
    if flat:
        columns = x.shape[-1]
        if not (isinstance(columns, int) and isinstance(half, int)):
            raise Unsupported("sizes of heads that are not known")
        x = split_heads(n, x, heads or columns // (2 * half))
    if positions.tensor.rank == 1:
        at = counted(n, x.shape[2])
        positions = n.b.add(p.Add(n.b.reshape(positions, (1, 1)), n.unsqueeze(at, [0]))).y
    cos, sin = rows_at(n, cos, positions), rows_at(n, sin, positions)
    y = rotate(n, x, cos, sin, interleaved=bool(n.attr("interleaved", 0)), width=width)
    return join_heads(n, y) if flat else y


@onnx_op("GroupQueryAttention", domain=MICROSOFT)
def _group_query_attention(n: Node) -> list[Value | None]:
    """Causal attention over a cache that grows by the new tokens.

    ``seqlens_k`` ``[B]`` is one less than the tokens that each batch then has; new keys stand
    behind those that its past has. Present keys are as many as past and new ones together: a cache
    that is written in place (past and present of one length) is not what this imports.
    """
    heads, groups = n.attr("num_heads"), n.attr("kv_num_heads")
    q, k, v = _projected(n, heads, groups)
    batch, length = q.shape[0], q.shape[2]
    last = n.b.reshape(n.b.cast(n.x(5), DType.I64), (batch, 1))
    before = add(n, last, n.full(dim(1 - length), DType.I64))
    before = n.b.add(p.Maximum(before, n.full(0, DType.I64))).y
    positions = n.b.add(p.Add(before, n.unsqueeze(counted(n, length), [0]))).y
    if n.attr("do_rotary", 0):
        at = n.x(9) if n.has(9) else positions
        cos, sin = rows_at(n, n.x(7), at), rows_at(n, n.x(8), at)
        turned = bool(n.attr("rotary_interleaved", 0))
        half = cos.shape[-1]
        width = 2 * half if isinstance(half, int) else None
        q, k = (rotate(n, t, cos, sin, interleaved=turned, width=width) for t in (q, k))
    k, v = (_cached(n, n.opt(i), t, positions) for i, t in ((3, k), (4, v)))
    window = n.attr("local_window_size", -1)
    asked = Asked(
        q, k, v, _scale(n, q), n.opt(10), positions,
        causal=True, window=window if window > 0 else None,
        softcap=n.attr("softcap", 0.0) or None, sinks=n.opt(11),
    )  # fmt: skip
    if n.attr("smooth_softmax", 0) > 0 and asked.sinks is None:
        asked.sinks = n.b.full(0.0, q.dtype, (heads,))
    if n.has(12) or n.has(13):
        raise Unsupported("norms or scales of keys as inputs")
    return [join_heads(n, attend(n, asked)), k, v]


def _projected(n: Node, heads: int, groups: int) -> tuple[Value, Value, Value]:
    """Queries, keys and values by heads, from three inputs or one that has all columns."""
    q = n.x(0)
    if n.has(1):
        return (
            split_heads(n, q, heads),
            split_heads(n, n.x(1), groups),
            split_heads(n, n.x(2), groups),
        )
    whole = q.shape[-1]
    if not isinstance(whole, int):
        raise Unsupported("packed columns whose number is not known")
    width = whole // (heads + 2 * groups)
    ends = [heads * width, (heads + groups) * width, whole]
    parts = [n.b.slice(q, 2, a, b) for a, b in zip([0, *ends], ends, strict=False)]
    return (
        split_heads(n, parts[0], heads),
        split_heads(n, parts[1], groups),
        split_heads(n, parts[2], groups),
    )


def _cached(n: Node, past: Value | None, x: Value, positions: Value) -> Value:
    """The past and what is new, at its positions: batches may have shorter pasts than others."""
    if past is None or past.shape[2] == 0:
        return x
    whole = n.b.add(Concat((past, x), axis=2)).y
    if x.shape[0] == 1:
        return whole
    batch, length = positions.shape
    at = n.b.expand(n.b.reshape(positions, (batch, 1, length, 1)), x.shape)
    return n.b.add(Scatter(whole, at, x, axis=2)).y


def _scale(n: Node, q: Value) -> float:
    width = q.shape[-1]
    return float(n.attr("scale", 0.0) or 1 / math.sqrt(width if isinstance(width, int) else 1))


@onnx_op("MultiHeadAttention", domain=MICROSOFT)
def _multi_head_attention(n: Node) -> list[Value | None]:
    heads = n.attr("num_heads")
    q, k, v = _three(n, heads)
    k, v = appended(n, n.opt(6), k), appended(n, n.opt(7), v)
    mask = n.opt(5)
    if n.has(4):
        mask = both(n, mask, _padding(n, n.x(4), k))
    causal, positions = bool(n.attr("unidirectional", 0)), None
    if causal and n.has(6):
        positions = counted(n, q.shape[2], n.x(6).shape[2])
    if n.wants(3):
        raise Unsupported("the scores as an output")
    asked = Asked(q, k, v, _scale(n, q), mask, positions, causal=causal)
    return [join_heads(n, attend(n, asked)), k, v]


def _three(n: Node, heads: int) -> tuple[Value, Value, Value]:
    """Queries, keys and values ``[B, H, S, D]`` from any of the operator's forms."""
    q = n.x(0)
    if q.tensor.rank == 5:  # [B, S, H, 3, D]
        return _unpacked_heads(n, q, 3)
    if n.has(1) and n.x(1).tensor.rank == 5:  # [B, L, H, 2, D]
        k, v = _unpacked_heads(n, n.x(1), 2)
        return split_heads(n, _biased(n, q, 0), heads), k, v
    if not n.has(1):
        raise Unsupported("queries alone")
    k, v = n.x(1), n.x(2)
    if k.tensor.rank == 4:
        return split_heads(n, _biased(n, q, 0), heads), k, v
    start = 0
    parts: list[Any] = []
    for x in (q, k, v):
        parts.append(split_heads(n, _biased(n, x, start), heads))
        start = dim(start + x.shape[-1])
    return parts[0], parts[1], parts[2]


def _biased(n: Node, x: Value, start: Any) -> Value:
    """x and its columns of the one bias that all three share."""
    if not n.has(3):
        return x
    return add(n, x, n.b.slice(n.x(3), 0, start, dim(start + x.shape[-1])))


def _unpacked_heads(n: Node, x: Value, count: int) -> Any:
    if n.has(3):
        raise Unsupported("a bias beside packed operands")
    batch, length, heads, _, width = x.shape
    parts = [n.b.slice(x, 3, i, i + 1) for i in range(count)]
    flat = [n.b.reshape(part, (batch, length, heads, width)) for part in parts]
    return tuple(n.b.permute(part, (0, 2, 1, 3)) for part in flat)


def _padding(n: Node, mask: Value, k: Value) -> Value:
    """The keys that are no padding: by a mask ``[B, L]``, or by how many there are ``[B]``."""
    batch, keys = k.shape[0], k.shape[2]
    if mask.tensor.rank == 2:
        return n.b.reshape(n.b.cast(mask, DType.BOOL), (batch, 1, 1, keys))
    if mask.tensor.rank == 1 and mask.shape[0] == batch:
        count = n.b.reshape(n.b.cast(mask, DType.I64), (batch, 1, 1, 1))
        return n.b.add(p.Lt(counted(n, keys), count)).y
    raise Unsupported(f"a mask of padding {mask.type}")
