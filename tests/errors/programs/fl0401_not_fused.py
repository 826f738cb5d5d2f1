"""A weight that two products share cannot be packed beside its sibling, and nothing is an MLP."""

from pathlib import Path

import torch
from torch import Tensor, nn

import fuseline


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 4, bias=False), nn.Linear(8, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        again = torch.relu(x) @ self.left.weight.t()
        return torch.cat((self.left(x), self.right(x), again), -1)


def program(tmp: Path) -> None:
    model = fuseline.compile(Tied(), cache_dir=tmp, require=["merged_linear", "gated_mlp"])
    with torch.no_grad():
        model(torch.ones(2, 8))
