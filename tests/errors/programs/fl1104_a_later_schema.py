"""A file of a later version."""

from pathlib import Path

import fuseline
from tests.artifact import handmade


def program(tmp: Path) -> None:
    handmade.write(tmp / "model.fuse", schema=99)
    fuseline.load(tmp / "model.fuse")
