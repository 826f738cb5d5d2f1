"""Advisory locks between processes, which save duplicate work and protect nothing.

A lock is an exclusive ``flock`` on a file: the kernel releases it when its holder ends, however it
ends. One that cannot be had in time, or at all on this file system, is done without: what the
cache holds stays right, because entries are published by an atomic rename.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05


@contextmanager
def holding(path: Path, timeout: float) -> Generator[bool]:
    """Hold the lock file `path`, waiting up to `timeout` seconds; gives whether it is held.

    Raises:
        OSError: the lock file cannot be made.
    """
    descriptor = _acquire(path, timeout)
    if descriptor is None:
        logger.info("no lock on %s after %.0f s: going on without", path.name, timeout)
        yield False
        return
    try:
        yield True
    finally:
        # Removed while still held, so that whoever opened it before sees that it is gone.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def hold_directory(path: Path) -> int:
    """Mark a directory as in use by this process; closing the descriptor ends that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def directory_is_held(path: Path) -> bool:
    """Whether some process holds the directory; True if that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path, timeout: float) -> int | None:
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            pass
        except OSError as error:
            logger.info("no locks here (%s): going on without", error.strerror)
            os.close(descriptor)
            return None
        os.close(descriptor)
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked is the one that others would lock now."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False
