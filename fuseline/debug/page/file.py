"""A file that one process writes, again and again, and each time as a whole.

Who writes it holds a lock on it for as long as the process lives. Another process that is to write
the same file finds it locked, and takes a name beside it. Whatever lies under the name that was
asked for is replaced, and under one beside it only a page. Files are never seen half-written, and
no locks are left behind.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
from contextlib import suppress
from pathlib import Path

from fuseline.errors import PAGE_IN_USE

GENERATOR = '<meta name="generator" content="fuseline">'
"""What the head of a page has."""

_HEAD = 4096


class OwnFile:
    """A file of this process alone; ``path`` is where it came to lie."""

    def __init__(self, path: Path) -> None:
        self.wanted = Path(os.path.realpath(path))  # a link stays one
        self.path = self.wanted
        self._lock: int | None = None

    def write(self, text: str) -> None:
        """Have this text in the file.

        Raises:
            OSError: it cannot be written; what was there is there still.

        """
        if self.wanted.exists() and not self.wanted.is_file():  # a pipe is written to as it is
            self.wanted.write_text(text, encoding="utf-8")
            return
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
        lock = None
        try:
            temporary.write_text(text, encoding="utf-8")
            lock = os.open(temporary, os.O_RDONLY)
            _locked(lock)
            self._put(temporary)
            lock, self._lock = self._lock, lock
        finally:
            if lock is not None:
                os.close(lock)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have the file."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _put(self, temporary: Path) -> None:
        if self._lock is not None:
            temporary.replace(self.path)
            return
        for number in itertools.count():
            suffix = f"-{number}" if number else ""
            self.path = self.wanted.with_stem(f"{self.wanted.stem}{suffix}")
            if number and not _may_be_replaced(self.path):
                continue
            if _taken(temporary, self.path):
                break
        if self.path != self.wanted:
            PAGE_IN_USE.warn(str(self.wanted), hint=f"the page of this one is {self.path}")


def _may_be_replaced(path: Path) -> bool:
    """Whether nothing is there, or a page."""
    try:
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(_HEAD)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _taken(temporary: Path, path: Path) -> bool:
    """Put a file in a place, unless a living process writes what is there."""
    while True:
        try:
            os.link(temporary, path)  # of two that find nothing there, one gets it
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            temporary.replace(path)
            return True
        else:
            return True
        try:
            there = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        except OSError:  # it cannot be read, so nobody holds it
            temporary.replace(path)
            return True
        try:
            if not _locked(there):
                return False
            if _is_at(there, path):
                temporary.replace(path)
                return True
        finally:
            os.close(there)


def _locked(file: int) -> bool:
    """Lock a file until it is closed; False where somebody has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that lies there now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


__all__ = ["GENERATOR", "OwnFile"]
