"""Remarks of a pass whose name is misspelt."""

from pathlib import Path

import torch

import fuseline


def program(tmp: Path) -> None:
    del tmp
    fuseline.compile(torch.nn.Linear(3, 5), remarks_missed="fuse-qknorm")
