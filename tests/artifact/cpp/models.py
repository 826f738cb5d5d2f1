"""Tiny models for the tests of the C++ runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseline.exporting.capture import Part
from fuseline.exporting.export import export, export_parts

HIDDEN, HEADS, KEYS, WIDTH, VOCABULARY = 48, 4, 2, 12, 50
PLACES = 16
"""Of the cache of `Store`."""


def _linear(inner: int, outer: int) -> nn.Linear:
    return nn.Linear(inner, outer, bias=False)


class Attention(nn.Module):
    """Grouped heads, a norm of q and k, rotary positions."""

    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = _linear(HIDDEN, HEADS * WIDTH), _linear(HEADS * WIDTH, HIDDEN)
        self.k, self.v = _linear(HIDDEN, KEYS * WIDTH), _linear(HIDDEN, KEYS * WIDTH)
        self.q_norm, self.k_norm = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        steps = 10000.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
        angles = torch.outer(torch.arange(256.0), steps)
        self.register_buffer("angles", torch.cat((angles, angles), -1))

    def forward(self, x: Tensor) -> Tensor:
        B, S, _ = x.shape
        q, k, v = (p(x).view(B, S, -1, WIDTH) for p in (self.q, self.k, self.v))
        angles = self.angles[:S].float()[None, :, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q = turned(self.q_norm(q), cos, sin).transpose(1, 2)
        k = turned(self.k_norm(k), cos, sin).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(B, S, -1))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, half by half."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Mlp(nn.Module):
    """A gated one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            _linear(HIDDEN, 80),
            _linear(HIDDEN, 80),
            _linear(80, HIDDEN),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Four experts, two for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = _linear(HIDDEN, 4)
        self.up = nn.Parameter(torch.randn(4, 2 * 32, HIDDEN) / 7)
        self.down = nn.Parameter(torch.randn(4, HIDDEN, 32) / 6)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, HIDDEN)
        weight, chosen = self.router(flat).float().softmax(-1).topk(2, -1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        pairs = flat[:, None].expand(-1, 2, -1).reshape(-1, HIDDEN, 1)
        picked = chosen.reshape(-1)
        gate, up = torch.bmm(self.up[picked], pairs).squeeze(-1).chunk(2, -1)
        made = torch.bmm(self.down[picked], (F.silu(gate) * up)[..., None]).squeeze(-1)
        return (made.view(-1, 2, HIDDEN) * weight[..., None]).sum(1).view(x.shape)


class Block(nn.Module):
    """A decoder block; its result has a leaf of every kind."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN, eps=1e-6), nn.RMSNorm(HIDDEN, eps=1e-6)
        self.attention, self.mlp = Attention(), mlp

    def forward(self, ids: Tensor, scale: Tensor) -> dict[str, Any]:
        x = self.embed(ids)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        pooled = (x * scale).amax(1)
        return {
            "hidden": x,
            "pooled": pooled,
            "row": scale[1:],
            "tokens": ids.shape[1],
            "kind": "a",
        }


class Store(nn.Module):
    """Writes tokens to a cache, counts them, and guesses the next from all of them."""

    store: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 8), _linear(8, VOCABULARY)
        self.register_buffer("store", torch.zeros(1, PLACES, 8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        at = self.count + torch.arange(ids.shape[1])
        self.store.index_copy_(1, at, self.embed(ids))
        self.count.add_(ids.shape[1])
        return self.head(self.store.sum(1)) * self.count


class Peek(Store):
    """Reads the cache, and writes nothing."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.store.sum(1) + self.embed(ids).sum(1)


class Rows(nn.Module):
    """A product of rows, for which the program has a place in the memory of the caller."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        total.add_(x.sum((0, 1)))
        return self.linear(x)


class Without(nn.Module):
    """Has an op that no kernel does."""

    def forward(self, x: Tensor) -> Tensor:
        return cast("Any", torch).linalg.inv(x) + 1


class Complex(nn.Module):
    """Takes complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(x) * 2


class Integers(nn.Module):
    """Takes integers: a size, and one that is only data."""

    def forward(self, x: Tensor, count: int, offset: int) -> tuple[Tensor, Tensor, int]:
        return x + offset, torch.arange(count) * 3, count + 2 * offset


def ids(B: int, S: int) -> Tensor:
    """Seeded tokens."""
    generator = torch.Generator().manual_seed(100 * B + S)
    return torch.randint(0, VOCABULARY, (B, S), generator=generator)


def scale(dtype: torch.dtype) -> Tensor:
    """The other input of a `Block`."""
    return torch.linspace(0.5, 2, HIDDEN).to(dtype)


def exported_block(path: Path, model: nn.Module, dtype: torch.dtype, **options: Any) -> nn.Module:
    """Batch 1 to 8, sequence 1 to 256."""
    model = model.eval().to(dtype)
    dims = {0: torch.export.Dim("B", min=1, max=8), 1: torch.export.Dim("S", min=1, max=256)}
    export(model, (ids(2, 5), scale(dtype)), path=path, dynamic_shapes=(dims, None), **options)
    return model


def exported_store(path: Path, **options: Any) -> None:
    """The programs of a language model over one cache."""
    model, tokens = Store().eval(), torch.export.Dim("tokens", min=1, max=PLACES)
    parts = {
        "prefill": Part(model, (ids(1, 5),), {}, ({1: tokens},)),
        "decode": Part(model, (ids(1, 1),)),
    }
    export_parts(parts, path=path, **options)


def exported_peek(path: Path, **options: Any) -> None:
    """A program that reads the state of one behind it: both have the same tensors."""
    peek, model = Peek().eval(), Store().eval()
    peek.load_state_dict(model.state_dict(), assign=True)
    parts = {"peek": Part(peek, (ids(1, 1),)), "decode": Part(model, (ids(1, 1),))}
    export_parts(parts, path=path, **options)


def exported_rows(path: Path, width: int, **options: Any) -> nn.Module:
    """Batch 1 to 8, rows 1 to 512."""
    model = Rows(width).eval()
    dims = {0: torch.export.Dim("B", min=1, max=8), 1: torch.export.Dim("S", min=1, max=512)}
    example = (torch.randn(2, 5, width), torch.zeros(width))
    export(model, example, path=path, dynamic_shapes=(dims, None), **options)
    return model
