"""A model with dropout, exported while it is trained."""

from pathlib import Path

import torch
from torch import Tensor, nn

import fuseline


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) + 1


def program(tmp: Path) -> None:
    fuseline.export(Wide(), (torch.ones(2, 8),), path=tmp / "wide.fuse")
