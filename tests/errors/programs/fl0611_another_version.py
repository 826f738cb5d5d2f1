"""The file was written by a fuseline whose entries have another form."""

from pathlib import Path

from fuseline.runtime.cache import Cache, canonical
from fuseline.runtime.cache.importing import import_from
from fuseline.runtime.cache.plain_zip import Writer


def program(tmp: Path) -> None:
    file = tmp / "kernels.zip"
    known = canonical({"format": "fuseline-cache", "version": 1, "schema": 2}).encode()
    with file.open("w+b") as opened:
        writer = Writer(opened)
        writer.add("format.json", len(known), iter([known]))
        writer.close()
    import_from(file, Cache.open(tmp / "cache"), most_bytes=1 << 30)
