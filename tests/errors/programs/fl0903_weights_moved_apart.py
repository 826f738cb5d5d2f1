"""Weights of a merged product that were replaced by tensors that someone holds."""

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
    held = {name: torch.ones(48, 32) for name in ("gate.weight", "up.weight")}
    with torch.no_grad():
        compiled(torch.ones(2, 32))
        model.load_state_dict(held, assign=True)
        for _ in range(2):
            compiled(torch.ones(2, 32))
