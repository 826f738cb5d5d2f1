"""An archive with the name of a GGUF file."""

from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    (tmp / "model.gguf").write_bytes(b"PK\3\4" + bytes(60))
    load(str(tmp / "model.gguf"), Config())
