"""A model with an operator that has no form in ONNX."""

from pathlib import Path

import torch
from torch import Tensor, nn

import fuseline


class Solver(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.logdet(x + 1) * x


def program(tmp: Path) -> None:
    fuseline.export_onnx(Solver(), (torch.eye(4),), path=tmp / "solver.onnx")
