"""A name that is nearly that of a model."""

from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    del tmp
    load("smolm2", Config())
