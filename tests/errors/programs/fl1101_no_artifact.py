"""A file that is not there."""

from pathlib import Path

import fuseline


def program(tmp: Path) -> None:
    fuseline.load(tmp / "model.fuse")
