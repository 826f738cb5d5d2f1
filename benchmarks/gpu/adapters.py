"""A linear with low-rank adapters of which each request has its own, by adapters in use.

64 requests of one token for some of 64 adapters of rank 16, 4096 to 4096. Eager and torch.compile
gather the matrices of each request's adapter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.adapters import AdaptedLinear, Sizes, numbers, seed_weights
from benchmarks.common import Json
from benchmarks.gpu.compare import in_graphs
from benchmarks.gpu.device import Device

REQUESTS = 64
SETS = 8
"""Inputs that take turns; each is for adapters of its own."""

MOST_DIFFERENT = 0.02


def measure(device: Device, active: int, without: Sequence[str]) -> Json:
    """Samples and figures for so many adapters in use; the bytes are those that must be read."""
    sizes = Sizes(8, 4, 64) if device.quick else Sizes(64, 16, 4096)
    with torch.device(device.name):
        model = AdaptedLinear(sizes).to(torch.bfloat16)
    seed_weights(model, device.name)
    rows = [device.random(REQUESTS, 1, sizes.width, seed=seed) for seed in range(SETS)]
    inputs = [
        (x, numbers(active, REQUESTS, sizes.adapters, seed=seed).to(device.name))
        for seed, x in enumerate(rows)
    ]
    adapters = (model.a.nbytes + model.b.nbytes) * active // sizes.adapters
    moved = model.weight.nbytes + adapters + 2 * rows[0].nbytes
    return {"bytes": moved, **in_graphs(device, model, inputs, MOST_DIFFERENT, without)}
