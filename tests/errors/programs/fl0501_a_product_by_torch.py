"""torch multiplies two results with one another, and chooses how it adds by the number of rows."""

from pathlib import Path

import torch
from torch import Tensor, nn

import fuseline


class Similar(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(-2, -1)


def program(tmp: Path) -> None:
    model = fuseline.compile(Similar(), cache_dir=tmp, batch_invariant=True)
    with torch.no_grad():
        model(torch.ones(2, 8, 4))
