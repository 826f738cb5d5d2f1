"""A compiled program, called with too few tensors."""

from pathlib import Path

import torch
from torch import nn

from fuseline import Config
from fuseline.compiler import Compiler
from fuseline.frontend.export import capture_export


def program(tmp: Path) -> None:
    del tmp
    captured = capture_export(nn.Linear(3, 5), (torch.ones(2, 3),)).captured
    Compiler(Config())(captured)([torch.ones(2, 3)])
