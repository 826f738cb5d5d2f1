"""The cache directory that was named is a file."""

from pathlib import Path

from fuseline.runtime.cache import Cache


def program(tmp: Path) -> None:
    (tmp / "cache").write_text("not a directory")
    Cache.open(tmp / "cache").get("kernel", {})
