"""A file of entries was not copied to its end."""

from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.cache.exporting import export_to
from fuseline.runtime.cache.importing import import_from


def program(tmp: Path) -> None:
    cache, file = Cache.open(tmp / "cache"), tmp / "kernels.zip"
    cache.get_or_build("kernel", {}, lambda folder: (folder / "kernel.o").touch())
    export_to(file, cache.entries())
    file.write_bytes(file.read_bytes()[:-100])
    import_from(file, Cache.open(tmp / "other"), most_bytes=1 << 30)
