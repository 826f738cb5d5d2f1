"""The file holds more than is allowed."""

from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.cache.exporting import export_to
from fuseline.runtime.cache.importing import import_from


def program(tmp: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "kernel.o").write_bytes(bytes(5000))

    cache, file = Cache.open(tmp / "cache"), tmp / "kernels.zip"
    cache.get_or_build("kernel", {}, build)
    export_to(file, cache.entries())
    import_from(file, Cache.open(tmp / "other"), most_bytes=4096)
