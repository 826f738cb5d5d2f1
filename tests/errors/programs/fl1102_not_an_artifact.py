"""A download that is a page of a web server."""

from pathlib import Path

import fuseline


def program(tmp: Path) -> None:
    (tmp / "model.fuse").write_text("<html><body>404 Not Found</body></html>")
    fuseline.load(tmp / "model.fuse")
