"""Remarks into a folder that is not there."""

from pathlib import Path

import torch

import fuseline


def program(tmp: Path) -> None:
    fuseline.compile(torch.nn.Linear(3, 5), remarks_output=tmp / "absent" / "remarks.yaml")
