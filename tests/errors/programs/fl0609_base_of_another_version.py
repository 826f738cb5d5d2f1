"""The base was filled by a fuseline whose entries have another form."""

from pathlib import Path

from fuseline.runtime.cache import Cache


def program(tmp: Path) -> None:
    (tmp / "base" / "v0" / "entries").mkdir(parents=True)
    Cache.open(tmp / "cache", [tmp / "base"]).get("kernel", {})
