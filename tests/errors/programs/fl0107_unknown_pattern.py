"""A pattern to require that no site has."""

from pathlib import Path

import torch

import fuseline


def program(tmp: Path) -> None:
    del tmp
    fuseline.compile(torch.nn.Linear(3, 5), require=["qk_norms", "moe=4"])
