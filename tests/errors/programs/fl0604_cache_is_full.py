"""The disk that holds the cache is full: the entry is built in a temporary directory."""

import errno
from pathlib import Path

from fuseline.runtime.cache import Cache


def program(tmp: Path) -> None:
    root = tmp / "cache"

    def build(folder: Path) -> None:
        if folder.is_relative_to(root):
            raise OSError(errno.ENOSPC, "No space left on device")
        (folder / "kernel.o").write_bytes(b"code")

    entry = Cache.open(root).get_or_build("kernel", {"source": "abc"}, build)
    assert entry.file("kernel.o").read_bytes() == b"code"
