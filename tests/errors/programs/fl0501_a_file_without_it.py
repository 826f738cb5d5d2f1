"""A file that was exported without the option that the environment sets."""

import os
from pathlib import Path

import torch
from torch import nn

import fuseline


def program(tmp: Path) -> None:
    path = tmp / "model.fuse"
    fuseline.export(nn.SiLU(), (torch.ones(2, 8),), path=path)
    os.environ["FUSELINE_BATCH_INVARIANT"] = "1"
    fuseline.load(path)
