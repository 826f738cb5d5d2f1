"""A page in a folder that is not there: refused before anything is compiled."""

from pathlib import Path

import fuseline


def program(tmp: Path) -> None:
    fuseline.compile(abs, html=tmp / "reports" / "model.html")
