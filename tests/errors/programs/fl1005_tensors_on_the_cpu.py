"""A model is compiled for a GPU, and called with tensors on the CPU."""

from pathlib import Path

import torch

import fuseline


def program(tmp: Path) -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x

    compiled = fuseline.compile(double, target="sm_90", cache_dir=tmp)
    with torch.no_grad():
        compiled(torch.ones(4))
