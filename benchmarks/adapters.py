"""A linear with low-rank adapters of which each request has its own, by adapters in use.

    OMP_NUM_THREADS=1 python -m benchmarks.adapters --threads 1

32 requests of one token for some of 32 adapters of rank 16, 1024 to 1024. Models gather the
matrices of each request's adapter: what that costs follows the requests. The linear is part of what
every contender does; `linear` is it alone.
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

ACTIVE = (1, 2, 4, 8, 16, 32)
REQUESTS = 32


@dataclass(frozen=True)
class Sizes:
    """Of a linear and its adapters."""

    adapters: int = 32
    rank: int = 16
    width: int = 1024


class AdaptedLinear(nn.Module):
    """A linear, and what the adapter of each request adds to it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        n, r, w = sizes.adapters, sizes.rank, sizes.width
        self.weight, self.a, self.b = (
            nn.Parameter(torch.empty(*shape), requires_grad=False)
            for shape in ((w, w), (n, r, w), (n, w, r))
        )

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x [B, S, W], ids [B]."""
        delta = x @ self.a[ids].mT @ self.b[ids].mT * 2.0
        return F.linear(x, self.weight) + delta


def seed_weights(model: nn.Module, device: str = "cpu") -> None:
    """Small seeded weights."""
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.03, generator=generator)


def numbers(active: int, requests: int, adapters: int, *, seed: int) -> Tensor:
    """The adapter of each request: so many different ones, spread evenly over those that are."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(adapters, generator=generator)[:active]
    return chosen[torch.arange(requests) % active][torch.randperm(requests, generator=generator)]


def measure(active: int, dtype: str, seconds: float) -> Json:
    """Samples and figures for so many adapters in use."""
    torch.compiler.reset()
    sizes = Sizes()
    model = AdaptedLinear(sizes).to(DTYPES[dtype])
    seed_weights(model)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(REQUESTS, 1, sizes.width, generator=generator).to(DTYPES[dtype])
    ids = numbers(active, REQUESTS, sizes.adapters, seed=2)
    makers: dict[str, Callable[..., Tensor]] = {
        "fuseline": fuseline.compile(model, dynamic=False),
        "torch.compile": _torch.optimize(model, "inductor", dynamic=False),
        "eager": model,
    }
    runs = {name: partial(run, x, ids) for name, run in makers.items()}
    want = runs["eager"]()
    differences = {name: relative_error(run(), want) for name, run in runs.items()}
    runs["linear"] = partial(F.linear, x, model.weight)
    middle = medians(samples := by_turns(runs, seconds=seconds, most=60, untimed=1))
    return {
        "median_s": middle,
        "speedup": {name: middle[name] / middle["fuseline"] for name in ("torch.compile", "eager")},
        "difference_to_eager": differences,
        "load": load(),
        "samples_s": samples,
    }


BENCHMARK = BySize("adapters", __doc__, "active", ACTIVE, 5, measure)


if __name__ == "__main__":
    BENCHMARK.main(sys.argv[1:])
