"""An export into a folder that is not there."""

from pathlib import Path

import torch
from torch import nn

import fuseline


def program(tmp: Path) -> None:
    fuseline.export(nn.SiLU(), (torch.ones(2, 8),), path=tmp / "models" / "silu.fuse")
