"""A compiled program, called with an input of another type."""

from pathlib import Path

import torch
from torch import nn

from fuseline import Config
from fuseline.compiler import Compiler
from fuseline.frontend.export import capture_export


def program(tmp: Path) -> None:
    del tmp
    model = nn.Linear(3, 5)
    captured = capture_export(model, (torch.ones(2, 3),)).captured
    Compiler(Config())(captured)([model.weight, model.bias, torch.ones(2, 3).bfloat16()])
