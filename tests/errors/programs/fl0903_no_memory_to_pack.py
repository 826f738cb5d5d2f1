"""Weights of a merged product, on a device that is full."""

from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import fuseline
from fuseline.runtime import packing


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 48, bias=False)
        self.up = nn.Linear(32, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.gate(x)) + self.up(x)


class Full:
    """torch, without memory."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def empty(self, *size: int, **options: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def program(tmp: Path) -> None:
    del tmp
    model = Gated().eval()
    compiled = fuseline.compile(model)
    with torch.no_grad(), mock.patch.object(packing, "torch", Full()):
        for _ in range(2):
            compiled(torch.ones(2, 32))
