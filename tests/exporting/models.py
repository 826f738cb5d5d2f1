"""Models that tests of files share, those of the C++ runner among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fuseline.exporting import Part, export_parts

ROWS = torch.export.Dim("rows", min=1, max=64)


class Adapted(nn.Module):
    """Adapters of which so many are in use: their number is a size, and is read from memory."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = nn.Linear(24, 32)
        self.a = nn.Parameter(torch.randn(5, 4, 24, generator=generator))
        self.b = nn.Parameter(torch.randn(5, 32, 4, generator=generator))

    def forward(self, x: Tensor, ids: Tensor, active: int) -> Tensor:
        a, b = self.a[:active][ids], self.b[:active][ids]
        return cast("Tensor", self.base(x)) + x @ a.mT @ b.mT * 0.5


class Crossed(nn.Module):
    """Products of one input, read as one in the order in which they are asked for."""

    def __init__(self, order: str, weights: nn.ModuleDict) -> None:
        super().__init__()
        self.weights, self.order = weights, order

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.weights[name](x) for name in self.order], -1)


def crossed(path: Path, **options: Any) -> nn.ModuleDict:
    """Three programs, of which two read the same weights in an order that only one can have."""
    weights = nn.ModuleDict({n: nn.Linear(48, 16 + 8 * i) for i, n in enumerate("qkv")}).eval()
    parts = {
        name: Part(Crossed(order, weights), (torch.ones(5, 48),), {}, ({0: ROWS},))
        for name, order in {"first": "qkv", "second": "vkq", "third": "vkq"}.items()
    }
    export_parts(parts, path=path, **options)
    return weights
