"""A file that torch.export has not saved."""

from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    (tmp / "program.pt2").write_bytes(b"nothing")
    load(str(tmp / "program.pt2"), Config())
