"""Models as people write them without a library: every step of them is native.

Complex tables of turns and a cache written by slices, as in the reference code of Llama; softmax
spelled out under a mask of ones, as in small GPTs; interleaved rotation of part of a head, tables
looked up by position, and a cache that is passed in and returned, as in GPT-J.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from tests.codegen.oracle import seeded

VOCABULARY = 97


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return (x.float() * scale).type_as(x) * self.weight


class TurnedAttention(nn.Module):
    """Grouped heads, complex rotation, and caches of its own, ``[B, S, heads, dim]``."""

    def __init__(self, dim: int, heads: int, kv_heads: int, batch: int, length: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim // heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk, self.wv = (nn.Linear(dim, kv_heads * self.dim, bias=False) for _ in range(2))
        self.wo = nn.Linear(dim, dim, bias=False)
        self.keys: Tensor
        self.values: Tensor
        for name in ("keys", "values"):
            cache = torch.zeros(batch, length, kv_heads, self.dim)
            self.register_buffer(name, cache, persistent=False)

    def forward(self, x: Tensor, start: int, turns: Tensor, mask: Tensor | None) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.heads, self.dim)
        k = self.wk(x).view(b, t, self.kv_heads, self.dim)
        v = self.wv(x).view(b, t, self.kv_heads, self.dim)

        def turned(z: Tensor) -> Tensor:
            pairs = torch.view_as_complex(z.float().reshape(*z.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * turns.view(1, t, 1, -1)).flatten(3).type_as(z)

        q, k = turned(q), turned(k)
        self.keys[:b, start : start + t] = k
        self.values[:b, start : start + t] = v
        shape = (b, start + t, self.kv_heads, self.heads // self.kv_heads, self.dim)
        cached = (self.keys[:b, : start + t], self.values[:b, : start + t])
        k, v = (c[:, :, :, None, :].expand(shape).flatten(2, 3) for c in cached)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.dim)
        if mask is not None:
            scores = scores + mask
        weights = F.softmax(scores.float(), -1).type_as(q)
        return self.wo((weights @ v).transpose(1, 2).reshape(b, t, -1))


class TurnedBlock(nn.Module):
    def __init__(self, dim: int, *rest: int) -> None:
        super().__init__()
        self.attention = TurnedAttention(dim, *rest)
        self.norm, self.mlp_norm = RmsNorm(dim), RmsNorm(dim)
        self.w1, self.w3 = (nn.Linear(dim, 3 * dim, bias=False) for _ in range(2))
        self.w2 = nn.Linear(3 * dim, dim, bias=False)

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        x = x + self.attention(self.norm(x), *rest)
        y = self.mlp_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Turned(nn.Module):
    """Llama's reference code; its table of turns is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        dim, heads, length = 96, 6, 40
        self.embedding = nn.Embedding(VOCABULARY, dim)
        self.layers = nn.ModuleList(TurnedBlock(dim, heads, 2, 2, length) for _ in range(2))
        self.norm = RmsNorm(dim)
        self.output = nn.Linear(dim, VOCABULARY, bias=False)
        width = dim // heads
        frequencies = 10000.0 ** -(torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(length).float(), frequencies)
        self.turns = torch.polar(torch.ones_like(angles), angles)

    def forward(self, ids: Tensor, start: int) -> Tensor:
        t = ids.shape[1]
        x = self.embedding(ids)
        mask = None
        if t > 1:
            mask = torch.full((t, t), float("-inf")).triu(1)
            mask = torch.hstack([torch.zeros(t, start), mask]).type_as(x)
        for layer in self.layers:
            x = layer(x, start, self.turns[start : start + t], mask)
        return self.output(self.norm(x)).float()


class Small(nn.Module):
    """A small GPT: learnt positions, one weight for words in and out, a mask of ones."""

    def __init__(self) -> None:
        super().__init__()
        dim, length, self.heads = 96, 40, 6
        self.words, self.places = nn.Embedding(VOCABULARY, dim), nn.Embedding(length, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(dim, 4 * dim) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(4 * dim, dim) for _ in range(2))
        self.output = nn.Linear(dim, VOCABULARY, bias=False)
        self.words.weight = self.output.weight
        self.mask: Tensor
        self.register_buffer("mask", torch.tril(torch.ones(length, length))[None, None])

    def attention(self, x: Tensor, layer: int) -> Tensor:
        b, t, dim = x.shape
        parts = self.qkv[layer](x).split(dim, dim=2)
        q, k, v = (z.view(b, t, self.heads, dim // self.heads).transpose(1, 2) for z in parts)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.proj[layer](y.transpose(1, 2).contiguous().view(b, t, dim))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.size(1)))
        for layer in range(2):
            x = x + self.attention(self.norms[2 * layer](x), layer)
            hidden = F.gelu(self.up[layer](self.norms[2 * layer + 1](x)))
            x = x + self.down[layer](hidden)
        return self.output(self.norms[4](x)[:, [-1], :])


class Interleaved(nn.Module):
    """One layer of GPT-J's kind with a norm of queries and keys; the cache is a pair of tensors."""

    def __init__(self) -> None:
        super().__init__()
        dim, self.heads, self.rotary = 120, 5, 16
        self.words, self.norm = nn.Embedding(VOCABULARY, dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj, self.up, self.down = (
            nn.Linear(*shape) for shape in ((dim, dim), (dim, 4 * dim), (4 * dim, dim))
        )
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // self.heads) for _ in range(2))
        self.output = nn.Linear(dim, VOCABULARY)
        frequencies = 10000.0 ** -(torch.arange(0, self.rotary, 2) / self.rotary)
        angles = torch.einsum("i,j->ij", torch.arange(40).float(), frequencies)
        self.table: Tensor
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], -1))

    def rotated(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        turned, rest = x[..., : self.rotary], x[..., self.rotary :]
        swapped = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
        return torch.cat((turned * cos + swapped * sin, rest), -1)

    def forward(
        self, ids: Tensor, positions: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, t = ids.shape
        x = self.words(ids)
        h = self.norm(x)
        q, k, v = self.qkv(h).view(b, t, 3, self.heads, -1).unbind(2)
        tables = self.table[positions].chunk(2, -1)
        sin, cos = (torch.repeat_interleave(z[:, :, None, :], 2, 3) for z in tables)
        q, k = self.rotated(self.q_norm(q), sin, cos), self.rotated(self.k_norm(k), sin, cos)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        y = self.proj(y.transpose(1, 2).reshape(b, t, -1))
        x = x + y + self.down(F.gelu(self.up(h), approximate="tanh"))
        return self.output(x), (k, v)


def ready(model: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A model with seeded weights in a dtype, and one with the same weights in float64."""
    for number, parameter in enumerate(model.parameters()):
        offset = 1.0 if parameter.ndim == 1 else 0.0
        noise = seeded(*parameter.shape, dtype=torch.float32, seed=number)
        parameter.data = offset + noise / math.sqrt(parameter.shape[-1])
    model = model.to(dtype).requires_grad_(False).eval()
    return model, copy.deepcopy(model).double()


def assert_close(got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """As near to the exact values as eager, by the norm of the error."""
    size, ours, own = (
        math.sqrt(float(t.square().sum()))
        for t in (exact, got.double() - exact, eager.double() - exact)
    )
    assert ours <= 1.5 * own + 1e-7 * size


def token_ids(batch: int, tokens: int) -> Tensor:
    return (torch.arange(batch * tokens).view(batch, tokens) * 31 + 7) % VOCABULARY


DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)


@DTYPES
def test_complex_turns_and_a_cache_of_slices(dtype: torch.dtype) -> None:
    model, double = ready(Turned(), dtype)
    eager = copy.deepcopy(model)
    double.turns = cast("Any", model).turns.to(torch.complex128)
    compiled: Any = fuseline.compile(model)
    with torch.inference_mode():
        for tokens, start in ((7, 0), (1, 7), (1, 8), (1, 9), (3, 10)):
            ids = token_ids(2, tokens)
            exact = double(ids, start)
            assert_close(compiled(ids, start), eager(ids, start), exact)
    report = compiled.report()
    assert report.stats["host steps"] == 0
    assert report.count("rope", "fused") > 0
    assert report.count("attention", "fused") == report.count("attention") > 0


@DTYPES
def test_a_mask_of_ones(dtype: torch.dtype) -> None:
    model, double = ready(Small(), dtype)
    compiled: Any = fuseline.compile(model)
    with torch.inference_mode():
        for tokens in (5, 9, 1, 33):
            ids = token_ids(2, tokens)
            assert_close(compiled(ids), model(ids), double(ids))
    report = compiled.report()
    assert report.stats["host steps"] == 0
    assert report.count("attention", "fused") == report.count("attention") > 0


@DTYPES
def test_interleaved_tables_and_a_cache_that_is_returned(dtype: torch.dtype) -> None:
    model, double = ready(Interleaved(), dtype)
    compiled: Any = fuseline.compile(model)
    caches: list[Any] = [None] * 3
    start = 0
    with torch.inference_mode():
        for tokens in (5, 1, 1, 1):
            ids = token_ids(2, tokens)
            positions = torch.arange(start, start + tokens)[None].expand(2, -1)
            logits: list[Tensor] = []
            for number, run in enumerate((compiled, model, double)):
                out, caches[number] = run(ids, positions, caches[number])
                logits.append(out)
            assert_close(*logits)
            start += tokens
    report = compiled.report()
    assert report.stats["host steps"] == 0
    assert report.count("qk_norm", "fused") == report.count("qk_norm") > 0


def by_einsum(q: Tensor, k: Tensor, v: Tensor, order: str) -> Tensor:
    scores = torch.einsum(f"{order},{order.replace('q', 'k')}->bhqk", q, k) / math.sqrt(q.shape[-1])
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(unseen, -math.inf).softmax(-1)
    return torch.einsum(f"bhqk,{order.replace('q', 'k')}->{order}", weights, v)


@pytest.mark.parametrize("order", ["bhqd", "bqhd"])
@pytest.mark.parametrize("batch", [1, 2])
@DTYPES
def test_attention_by_einsum(dtype: torch.dtype, batch: int, order: str) -> None:
    compiled: Any = fuseline.compile(by_einsum, dynamic=False)
    sizes = {"b": batch, "h": 3, "d": 20}
    with torch.inference_mode():
        for tokens in (1, 7, 13):
            shape = [sizes.get(axis, tokens) for axis in order]
            q, k, v = (seeded(*shape, dtype=dtype, seed=n) for n in range(3))
            exact = by_einsum(q.double(), k.double(), v.double(), order)
            assert_close(compiled(q, k, v, order), by_einsum(q, k, v, order), exact)
    report = compiled.report()
    # that of one token is a product of vectors
    assert report.count("attention", "fused") == report.count("attention") == 2


def in_batches(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """As Bart and Bloom: heads and batch are one dim, or two again for the softmax."""
    b, h, s, d = q.shape
    q, k, v = (x.reshape(b * h, -1, d) for x in (q, k, v))
    if bias is None:
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    else:
        scores = bias.baddbmm(q, k.transpose(1, 2), beta=1.0, alpha=0.25).view(b, h, s, -1)
        weights = scores.softmax(-1).view(b * h, s, -1)
    return torch.bmm(weights, v).view(b, h, s, d).transpose(1, 2).reshape(b, s, h * d)


@pytest.mark.parametrize("biased", [False, True])
def test_attention_by_products_of_batches(biased: bool) -> None:
    compiled: Any = fuseline.compile(in_batches)
    given: list[Any] = [seeded(2, 4, 5, 8, dtype=torch.float32, seed=n) for n in range(3)]
    given.append(seeded(8, 1, 5, dtype=torch.float32, seed=3) if biased else None)
    wide: list[Any] = [None if x is None else x.double() for x in given]
    with torch.inference_mode():
        exact = in_batches(*wide)
        assert_close(compiled(*given), in_batches(*given), exact)
    report = compiled.report()
    assert report.stats["host steps"] == 0
    assert report.count("attention", "fused") == report.count("attention") == 1


@DTYPES
def test_products_with_weights_that_lie_by_columns(dtype: torch.dtype) -> None:
    def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, bias: Tensor) -> Tensor:
        return x + (F.silu(x @ gate) * (x @ up)) @ down + bias

    compiled: Any = fuseline.compile(mlp)
    shapes = ((40, 70), (40, 70), (70, 40), (40,))
    weights = [seeded(*s, dtype=dtype, seed=n) / 8 for n, s in enumerate(shapes)]
    with torch.inference_mode():
        for tokens in (1, 3, 40):
            x = seeded(2, tokens, 40, dtype=dtype, seed=9)
            exact = mlp(x.double(), *(w.double() for w in weights))
            assert_close(compiled(x, *weights), mlp(x, *weights), exact)
    assert compiled.report().stats["host steps"] == 0
