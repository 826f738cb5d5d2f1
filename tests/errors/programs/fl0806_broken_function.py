"""A model function that fails."""

import os
from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load

MODULE = """\
import torch

def make():
    return torch.nn.Linear(3, 5)(torch.ones(2, 4)), ()
"""


def program(tmp: Path) -> None:
    (tmp / "fl0806_user_model.py").write_text(MODULE)
    before = Path.cwd()
    os.chdir(tmp)
    try:
        load("fl0806_user_model:make", Config())
    finally:
        os.chdir(before)
