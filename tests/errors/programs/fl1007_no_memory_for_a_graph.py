"""The device has no memory for a graph."""

from pathlib import Path

import torch

from fuseline.build import Tools
from fuseline.config import Config
from tests.runtime.graphs.test_graphed import SORTED, graphed


def program(tmp: Path) -> None:
    _, recorder, run = graphed(Tools.find(Config(cache_dir=tmp)), SORTED)
    recorder.fail = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for _ in range(3):
        run([torch.ones(4)])
