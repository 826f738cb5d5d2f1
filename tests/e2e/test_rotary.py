"""Rotary embeddings whose tables are computed by a product in every call, or looked up."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseline
from tests.codegen.oracle import seeded


class Rotated(nn.Module):
    """Norm and rotation of queries and keys, whose angles are computed in every call."""

    def __init__(self, heads: int, kv_heads: int, dim: int) -> None:
        super().__init__()
        self.inv_freq: Tensor
        self.heads = (heads, kv_heads)
        self.middle = dim // 2
        self.q_norm, self.k_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        frequencies = 10000.0 ** -(torch.arange(0, dim, 2) / dim)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As transformers spelled it long: a product of frequencies and positions."""
        with torch.autocast("cpu", enabled=False):
            inv_freq = self.inv_freq[None, :, None].float().expand(positions.shape[0], -1, 1)
            angles = (inv_freq @ positions[:, None, :].float()).transpose(1, 2)
            table = torch.cat((angles, angles), -1)
        return table.cos(), table.sin()

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Args: q and k, [B, S, heads * dim]; positions, [B, S]."""
        cos, sin = (table[:, None].to(q.dtype) for table in self.tables(positions))

        def rotated(x: Tensor, heads: int, norm: nn.Module) -> Tensor:
            x = norm(x.unflatten(-1, (heads, -1))).transpose(1, 2)
            turned = torch.cat((-x[..., self.middle :], x[..., : self.middle]), -1)
            return x * cos + turned * sin

        heads, kv_heads = self.heads
        return rotated(q, heads, self.q_norm), rotated(k, kv_heads, self.k_norm)


class LookedUp(Rotated):
    """The tables of all positions are made once."""

    def __init__(self, heads: int, kv_heads: int, dim: int) -> None:
        super().__init__(heads, kv_heads, dim)
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = super().tables(torch.arange(1024)[None])
        self.register_buffer("cos", cos[0], persistent=False)
        self.register_buffer("sin", sin[0], persistent=False)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[positions], self.sin[positions]


@pytest.mark.parametrize("kind", [Rotated, LookedUp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_step_is_native(kind: type[Rotated], dtype: torch.dtype) -> None:
    model = kind(5, 2, 80).to(dtype)
    with torch.no_grad():
        for n, norm in enumerate((model.q_norm, model.k_norm)):
            norm.weight.copy_(1 + seeded(80, dtype=dtype, seed=n) / 8)
    double = copy.deepcopy(model).double()
    compiled: Any = fuseline.compile(model)
    with torch.inference_mode():
        for tokens in (1, 7, 13):
            q = seeded(3, tokens, 400, dtype=dtype, seed=2)
            k = seeded(3, tokens, 160, dtype=dtype, seed=3)
            positions = torch.arange(tokens)[None] + torch.tensor([[0], [5], [1000]])
            exact, eager = double(q.double(), k.double(), positions), model(q, k, positions)
            for got, own, true in zip(compiled(q, k, positions), eager, exact, strict=True):
                error = (got.double() - true).norm() / true.norm()
                assert error <= 1.5 * (own.double() - true).norm() / true.norm() + 1e-7
    report = compiled.report()
    assert report.stats["host steps"] == 0
    assert report.count("qk_norm", "fused") == report.count("qk_norm") == 2
