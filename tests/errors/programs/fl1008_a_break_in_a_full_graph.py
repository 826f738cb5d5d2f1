"""One graph is wanted of a program that has a step which cannot be recorded."""

from pathlib import Path

import torch

from fuseline.build import Tools
from fuseline.config import Config
from tests.runtime.graphs.test_graphed import SORTED, graphed


def program(tmp: Path) -> None:
    tools = Tools.find(Config(cache_dir=tmp))
    _, _, run = graphed(tools, SORTED, refuse=["aten.sort.default"], mode="full")
    for _ in range(3):
        run([torch.ones(4)])
