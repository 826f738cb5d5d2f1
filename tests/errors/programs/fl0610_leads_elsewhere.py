"""Somebody has put a file into it that is to be written outside of the cache."""

from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.cache.exporting import format_text
from fuseline.runtime.cache.importing import import_from
from fuseline.runtime.cache.plain_zip import Writer


def program(tmp: Path) -> None:
    file, known = tmp / "kernels.zip", format_text(1, 4).encode()
    with file.open("w+b") as opened:
        writer = Writer(opened)
        writer.add("entries/../../.bashrc", 4, iter([b"evil"]))
        writer.add("format.json", len(known), iter([known]))
        writer.close()
    import_from(file, Cache.open(tmp / "cache"), most_bytes=1 << 30)
