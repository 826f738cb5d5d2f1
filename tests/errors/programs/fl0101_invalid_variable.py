"""The same mistake, made in the environment."""

import os
from pathlib import Path

from fuseline import Config


def program(tmp: Path) -> None:
    del tmp
    os.environ["FUSELINE_FUSE_LIMIT"] = "-1"
    Config()
