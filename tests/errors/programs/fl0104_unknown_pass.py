"""A pass to leave out that does not exist."""

from pathlib import Path

import torch

import fuseline


def program(tmp: Path) -> None:
    del tmp
    fuseline.compile(torch.nn.Linear(3, 5), disable=["merge-linear"])
