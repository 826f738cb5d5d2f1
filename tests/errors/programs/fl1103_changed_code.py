"""Native code of which one letter is another: it is not loaded."""

from pathlib import Path

import fuseline
from tests.artifact import handmade


def program(tmp: Path) -> None:
    handmade.write(tmp / "model.fuse", runner=b"cade")
    fuseline.load(tmp / "model.fuse")
