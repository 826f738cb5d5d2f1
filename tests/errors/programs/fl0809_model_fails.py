"""A model and inputs that do not fit each other."""

from pathlib import Path

import torch
from torch import nn

from fuseline.cli.models import LoadedModel


def program(tmp: Path) -> None:
    LoadedModel("mine:make", nn.LayerNorm(64), (torch.ones(2, 63),)).run()
