"""Entries that another user has built are to be cleared."""

from pathlib import Path
from unittest import mock

from fuseline.runtime.cache import Cache


def program(tmp: Path) -> None:
    cache = Cache.open(tmp / "cache")
    cache.get_or_build("kernel", {}, lambda folder: (folder / "kernel.o").touch())
    refused = PermissionError(13, "Permission denied")
    with mock.patch.object(Path, "rename", side_effect=refused):  # root is refused nothing
        cache.clear()
