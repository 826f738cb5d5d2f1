"""A compiled program, called with more tokens than it was compiled for."""

from pathlib import Path

import torch
from torch import nn

from fuseline import Config
from fuseline.compiler import Compiler
from fuseline.frontend.export import capture_export


def program(tmp: Path) -> None:
    del tmp
    model = nn.Linear(3, 5)
    tokens = torch.export.Dim("tokens", min=2, max=8)
    captured = capture_export(model, (torch.ones(4, 3),), dynamic_shapes=({0: tokens},)).captured
    Compiler(Config())(captured)([model.weight, model.bias, torch.ones(9, 3)])
