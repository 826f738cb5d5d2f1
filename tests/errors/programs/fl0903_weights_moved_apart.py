"""Weights of a merged product that were replaced by parts of larger tensors."""

from pathlib import Path

import torch
from torch import Tensor, nn

import fuseline


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 48, bias=False)
        self.up = nn.Linear(32, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.gate(x)) + self.up(x)


def program(tmp: Path) -> None:
    del tmp
    model = Gated().eval()
    compiled = fuseline.compile(model)
    with torch.no_grad():
        compiled(torch.ones(2, 32))
        model.up.weight.data = torch.ones(96, 32)[:48]
        compiled(torch.ones(2, 32))
