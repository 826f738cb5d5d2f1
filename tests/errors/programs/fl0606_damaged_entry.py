"""A file of a cache entry was cut short: `fuseline cache verify` says which."""

from pathlib import Path

from fuseline.errors import Diagnostic
from fuseline.runtime.cache import Cache


def program(tmp: Path) -> Diagnostic:
    def build(folder: Path) -> None:
        (folder / "kernel.o").write_bytes(b"code")

    cache = Cache.open(tmp)
    entry = cache.get_or_build("kernel", {"source": "abc"}, build)
    entry.file("kernel.o").write_bytes(b"co")
    (damage,) = cache.verify()
    return damage
