"""`fuseline cache why` is asked about something that the cache does not hold."""

from pathlib import Path

from fuseline.runtime.cache import Cache


def program(tmp: Path) -> None:
    Cache.open(tmp).why("rms_norm_123")
