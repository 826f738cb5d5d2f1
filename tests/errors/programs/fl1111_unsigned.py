"""A file without a signature, where a key is given."""

from pathlib import Path

import fuseline
from tests.artifact import handmade


def program(tmp: Path) -> None:
    handmade.write(tmp / "model.fuse")
    fuseline.load(tmp / "model.fuse", verify_key=tmp / "author.pem")
