"""`fuseline cache why` is asked about something that the cache does not hold."""

from pathlib import Path

from fuseline.runtime.cache import Cache


def program(tmp: Path) -> None:
    cache = Cache.open(tmp)
    factors = {"name": "row_norm_c5d1b6"}
    cache.get_or_build("kernel", factors, lambda folder: (folder / "kernel.o").touch())
    cache.why("rms_norm")
