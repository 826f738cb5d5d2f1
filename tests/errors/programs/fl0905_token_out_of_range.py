"""A token id beyond the vocabulary."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import fuseline


def program(tmp: Path) -> None:
    model: Any = fuseline.compile(nn.Embedding(7, 4), cache_dir=tmp / "cache")
    with torch.no_grad():
        model(torch.tensor([1, 6]))
        model(torch.tensor([1, 7]))
