"""What a call needs does not fit on the device."""

from pathlib import Path
from unittest import mock

import torch

from fuseline.build import Tools
from fuseline.config import Config
from fuseline.runtime.executor import Program
from tests.runtime.graphs.conftest import graphed
from tests.runtime.graphs.test_graphed import SORTED

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")


def program(tmp: Path) -> None:
    program, *_ = graphed(Tools.find(Config(cache_dir=tmp)), SORTED)
    with mock.patch.object(Program, "slots", side_effect=FULL):
        program([torch.ones(400)])
