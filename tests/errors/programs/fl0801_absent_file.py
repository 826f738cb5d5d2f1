"""A GGUF file that is not there."""

from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    load(str(tmp / "model.gguf"), Config())
