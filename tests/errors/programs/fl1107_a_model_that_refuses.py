"""A model that does not take the example of its export."""

from pathlib import Path

import torch
from torch import Tensor, nn

import fuseline


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 16:
            raise ValueError(f"16 columns, not {x.shape[1]}")
        return x + 1


def program(tmp: Path) -> None:
    fuseline.export(Picky(), (torch.ones(2, 8),), path=tmp / "picky.fuse")
