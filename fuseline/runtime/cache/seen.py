"""Large files are digested once, not at every start.

Reading half a gigabyte of converted weights to check it would cost more than mapping it. So what
the operating system says of a large file (size, times, inode) is noted once its digest was found
right; while all of that stands, nobody has written to the file. Small files are always digested.
The notes lie outside the entries, those of a read-only layer in one that can be written, and may be
lost.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import cast

from fuseline.runtime.cache.entry import Entry, Trust
from fuseline.runtime.cache.location import make

LARGE_BYTES = 16 << 20


class Seen:
    """The notes of one layer, a file for each entry that has large files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def trusts(self, key: str) -> Trust:
        """What `load` should take as checked of the entry `key`."""
        notes: dict[str, list[int]] | None = None

        def trust(name: str, status: os.stat_result) -> bool:
            nonlocal notes
            if status.st_size < LARGE_BYTES:
                return False
            notes = self._read(key) if notes is None else notes
            return notes.get(name) == _fingerprint(status)

        return trust

    def remember(self, entry: Entry) -> None:
        """Note the large files of an entry that was just checked or built."""
        large = [name for name, record in entry.files.items() if record.size >= LARGE_BYTES]
        if not large:
            return
        with suppress(OSError):
            notes = {name: _fingerprint((entry.path / name).stat()) for name in large}
            if notes == self._read(entry.key):
                return
            make(self._folder)
            fresh = self._folder / f"{entry.key}.{os.getpid()}.new"
            fresh.write_text(json.dumps(notes))
            fresh.replace(self._folder / f"{entry.key}.json")

    def _read(self, key: str) -> dict[str, list[int]]:
        try:
            notes: object = json.loads((self._folder / f"{key}.json").read_text())
        except (OSError, ValueError):
            return {}
        return cast("dict[str, list[int]]", notes) if isinstance(notes, dict) else {}


def trust_all(name: str, status: os.stat_result) -> bool:
    """Trust for what this process has built and digested a moment ago."""
    del name, status
    return True


def _fingerprint(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
