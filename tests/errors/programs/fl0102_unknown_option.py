"""An option that does not exist."""

from pathlib import Path

from fuseline import Config


def program(tmp: Path) -> None:
    del tmp
    Config.of({"optimize": True})
