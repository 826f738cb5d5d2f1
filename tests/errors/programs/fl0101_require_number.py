"""A least number that is none."""

from pathlib import Path

import fuseline


def program(tmp: Path) -> None:
    del tmp
    fuseline.Config(require=["moe=all"])
