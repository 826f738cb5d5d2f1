"""The image that was to bring a filled cache did not."""

from pathlib import Path

from fuseline.runtime.cache import Cache


def program(tmp: Path) -> None:
    Cache.open(tmp / "cache", [tmp / "base"]).get("kernel", {})
