"""Text from a model that is no language model."""

import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from fuseline.cli.generate import run
from fuseline.cli.output import Output
from fuseline.cli.program import parser


def make() -> tuple[nn.Module, torch.Tensor]:
    return nn.Linear(3, 5), torch.ones(2, 3)


def program(tmp: Path) -> None:
    del tmp
    module = ModuleType("fl0807_user_model")
    vars(module)["make"] = make
    sys.modules[module.__name__] = module
    run(parser().parse_args(["generate", "fl0807_user_model:make", "--prompt", "x"]), Output())
