"""A module to leave out of the graph that the model does not have."""

from pathlib import Path

import torch
from torch import nn

import fuseline


def program(tmp: Path) -> None:
    del tmp
    compiled = fuseline.compile(nn.Sequential(nn.Linear(3, 5)), eager=["mlp"])
    compiled(torch.ones(2, 3))
