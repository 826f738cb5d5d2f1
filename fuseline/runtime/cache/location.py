"""Where a cache may lie, and what stands in when it may not.

A directory that the user named and that cannot be meant (a file, one that another user can write,
one inside the installed package) is an error. A directory that merely cannot be written is read;
what is built then goes to a private temporary directory of this process, with one warning.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from fuseline import errors
from fuseline.runtime.cache.entry import writable_by_others

CANNOT_WRITE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
)
"""Errors of the operating system that mean: nothing more can be written here."""
TEMPORARY_PARENTS = (None, "/dev/shm")
"""Where a temporary cache may be: the platform's place, and where that is full, shared memory."""

_warned: set[Path] = set()
_PACKAGE = Path(__file__).resolve().parents[2]


def user_cache() -> Path:
    """The platform's directory for a user's caches, with our name below it; nothing is made."""
    import platformdirs  # not asked for where a directory is named

    return Path(platformdirs.user_cache_dir("fuseline", appauthor=False))


def check(root: Path) -> None:
    """Refuse a root that is not a directory of ours; one that does not exist yet is fine.

    Raises:
        CacheError: FL0601 for something else than a directory, FL0602 where another user can write,
            FL0603 below the installed package.
    """
    if Path(os.path.realpath(root)).is_relative_to(_PACKAGE):
        raise errors.CACHE_IN_PACKAGE.error(where=str(root))
    try:
        status = root.stat()
    except NotADirectoryError:
        raise errors.CACHE_NOT_A_DIRECTORY.error(where=str(root)) from None
    except OSError:
        return  # not there yet, or `unreachable`
    if not stat.S_ISDIR(status.st_mode):
        raise errors.CACHE_NOT_A_DIRECTORY.error(where=str(root))
    if writable_by_others(status):
        mode = stat.S_IMODE(status.st_mode)
        found = f"mode {mode:04o}, owner uid {status.st_uid}"
        expected = f"mode 0700, owner uid {os.getuid()}"
        raise errors.CACHE_INSECURE.error(where=str(root), found=found, expected=expected)


def unreachable(root: Path) -> str:
    """Why the system does not let us look at a directory, if there is one; empty where it does."""
    try:
        root.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def is_read_only(root: Path) -> bool:
    """Whether a directory is there, and nothing can be made in it."""
    return root.is_dir() and not os.access(root, os.W_OK | os.X_OK)


@lru_cache
def temporary(parent: str | None) -> Path | None:
    """A private directory of this process, removed when it ends; None if none can be made."""
    try:
        root = Path(tempfile.mkdtemp(prefix="fuseline-", dir=parent))
    except OSError:
        return None
    atexit.register(_remove, root, os.getpid())
    return root


def warn_once(root: Path, reason: str) -> None:
    """Say that a temporary directory stands in for `root`, once in a process."""
    if root in _warned:
        return
    _warned.add(root)
    errors.CACHE_FALLBACK.warn(where=str(root), found=reason, stacklevel=3)


def _remove(root: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork of it
        shutil.rmtree(root, ignore_errors=True)
