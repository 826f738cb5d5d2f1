"""A file stands where the dumps are to go."""

from pathlib import Path

import fuseline


def program(tmp: Path) -> None:
    (tmp / "dumps").write_text("")
    fuseline.compile(abs, dump_dir=tmp / "dumps")
