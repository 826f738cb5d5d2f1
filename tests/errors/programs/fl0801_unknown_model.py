"""A name that is no model."""

from pathlib import Path

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    del tmp
    load("gpt-9", Config())
