"""Multi-head latent attention over a cache of latents: a decode step, as models spell it.

    OMP_NUM_THREADS=1 python -m benchmarks.mla --threads 1

Keys and values are expanded from the whole cache in each step, as in transformers' DeepSeek-V3;
a compiler may do otherwise. 16 heads, of 64 + 32 for keys and 64 for values; latents of 256.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from benchmarks.by_size import BySize
from benchmarks.common import Json, by_turns, load, medians
from benchmarks.models import DTYPES
from fuseline import _torch
from fuseline.debug.oracle import relative_error

BATCHES = (1, 8)
CONTEXT = 2048


@dataclass(frozen=True)
class Widths:
    """Of one attention layer."""

    heads: int = 16
    key: int = 64
    value: int = 64
    latent: int = 256
    shared: int = 32


class LatentAttention(nn.Module):
    """Attention of queries over what a cache of latents expands to."""

    def __init__(self, widths: Widths, dtype: torch.dtype) -> None:
        super().__init__()
        self.widths, made = widths, widths.heads * (widths.key + widths.value)
        weight = random(made, widths.latent, dtype=torch.float32, seed=1) * widths.latent**-0.5
        self.weight = nn.Parameter(weight.to(dtype))

    def forward(self, q: Tensor, latent: Tensor, shared: Tensor, position: Tensor) -> Tensor:
        """q [B, S, H (N + R)], latent [B, 1, T, L], shared [B, 1, T, R], position [S]."""
        w, (batch, _, length, _) = self.widths, latent.shape
        q = q.view(batch, -1, w.heads, w.key + w.shared).transpose(1, 2)
        both = F.linear(latent.squeeze(1), self.weight)
        both = both.view(batch, length, w.heads, w.key + w.value).transpose(1, 2)
        k, v = both[..., : w.key], both[..., w.key :]
        k = torch.cat((k, shared.expand(batch, w.heads, length, w.shared)), -1)
        mask = torch.arange(length) <= position[:, None]
        scale = (w.key + w.shared) ** -0.5
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return y.transpose(1, 2).reshape(batch, -1, w.heads * w.value)


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(widths: Widths, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A query, full caches, and the position of the last row."""
    q = random(batch, 1, widths.heads * (widths.key + widths.shared), dtype=dtype, seed=2)
    latent = random(batch, 1, CONTEXT, widths.latent, dtype=dtype, seed=3)
    shared = random(batch, 1, CONTEXT, widths.shared, dtype=dtype, seed=4)
    return q, latent, shared, torch.tensor([CONTEXT - 1])


def measure(batch: int, dtype: str, seconds: float) -> Json:
    """Samples and figures for one batch."""
    torch.compiler.reset()
    model = LatentAttention(Widths(), DTYPES[dtype])
    given = inputs(model.widths, batch, DTYPES[dtype])
    makers: dict[str, Callable[..., Tensor]] = {
        "fuseline": fuseline.compile(model, dynamic=False),
        "torch.compile": _torch.optimize(model, "inductor", dynamic=False),
        "eager": model,
    }
    runs = {name: partial(run, *given) for name, run in makers.items()}
    want = runs["eager"]()
    differences = {name: relative_error(run(), want) for name, run in runs.items()}
    middle = medians(samples := by_turns(runs, seconds=seconds, most=40, untimed=1))
    return {
        "median_s": middle,
        "speedup": {name: middle[name] / middle["fuseline"] for name in ("torch.compile", "eager")},
        "difference_to_eager": differences,
        "load": load(),
        "samples_s": samples,
    }


BENCHMARK = BySize("mla", __doc__, "batches", BATCHES, 5, measure)


if __name__ == "__main__":
    BENCHMARK.main(sys.argv[1:])
