"""A value that an option does not have."""

from pathlib import Path

from fuseline import Config


def program(tmp: Path) -> None:
    del tmp
    Config.of({"graphs": "fast"})
