"""A directory that is not a model's."""

from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    load(str(tmp), Config())
