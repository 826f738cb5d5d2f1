"""A loaded model, called with one argument more than its example had."""

from pathlib import Path

import torch
from torch import nn

import fuseline


def program(tmp: Path) -> None:
    x = torch.ones(2, 8)
    fuseline.export(nn.SiLU(), (x,), path=tmp / "silu.fuse", cpu_isa=("baseline",))
    fuseline.load(tmp / "silu.fuse")(x, x)
