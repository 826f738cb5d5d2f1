"""An option of compiling, given where a file is loaded."""

from pathlib import Path

import torch
from torch import nn

import fuseline


def program(tmp: Path) -> None:
    path = tmp / "model.fuse"
    fuseline.export(nn.SiLU(), (torch.ones(2, 8),), path=path)
    fuseline.load(path, strict=True)
