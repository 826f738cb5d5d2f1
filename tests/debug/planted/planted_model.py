"""A small model that gives the planted passes something to do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, BLOCKS = 24, 6


class Block(nn.Module):
    """A residual sum and its norm, then a product with gates, added to the norm."""

    def __init__(self, eps: float, parts: int) -> None:
        super().__init__()
        self.eps = eps
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(parts))
        self.down = nn.Linear(WIDTH, WIDTH, bias=False)
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x + self.inner(x), (WIDTH,), self.weight, self.eps)
        gated = y
        for i, part in enumerate(self.parts):
            gated = gated * torch.sigmoid(part(y) * (i + 1))
        return y + self.down(gated)


def make() -> tuple[nn.Module, Tensor]:
    """Six blocks: the fourth has an unusual eps, the fifth three parallel products."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    blocks = [Block(0.25 if i == 3 else 1e-6, 3 if i == 4 else 2) for i in range(BLOCKS)]
    return nn.Sequential(*blocks), torch.randn(5, WIDTH)
