"""The model that the planted passes break, as a reproducer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from fuseline.cli import main
from tests.debug.cases import PLANTED


@pytest.fixture(scope="session")
def planted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its reproducer, under the compiler's own pipeline."""
    path = tmp_path_factory.mktemp("planted") / "model.fl"
    torch.compiler.reset()
    before, place = list(sys.path), Path.cwd()
    os.chdir(PLANTED)
    try:
        assert main(["repro", "planted_model:make", "-o", str(path)]) == 0
    finally:
        os.chdir(place)
        sys.path[:] = before
    return path
