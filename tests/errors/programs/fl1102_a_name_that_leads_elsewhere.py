"""A member whose name leads out of the file."""

from pathlib import Path

import fuseline
from fuseline.artifact.archive import Writer


def program(tmp: Path) -> None:
    with (tmp / "model.fuse").open("wb") as file:
        writer = Writer(file)
        writer.add_bytes("../../etc/profile", b"echo hello")
        writer.end()
    fuseline.load(tmp / "model.fuse")
