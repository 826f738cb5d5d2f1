"""Every call brings a new cache."""

from pathlib import Path

import torch

from fuseline.build import Tools
from fuseline.config import Config
from tests.runtime.graphs.test_graphed import STEP, graphed, step_arguments


def program(tmp: Path) -> None:
    _, _, run = graphed(Tools.find(Config(cache_dir=tmp)), STEP)
    weight, kept = torch.ones(8), [torch.zeros(16, 8) for _ in range(9)]
    for cache in kept:
        x, at = step_arguments(2, 0)
        run([x, weight, cache, at])
