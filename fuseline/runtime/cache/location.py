"""Where a cache may lie, and what stands in when it may not.

A directory that the user named and that cannot be meant (a file, one that another user can write,
one inside the installed package) is an error. A directory that merely cannot be written is read;
what is built then goes to a private temporary directory of this process, with one warning.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import shutil
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from fuseline import errors
from fuseline.runtime.cache.entry import VERSION, writable_by_others

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
    _check_directory(root, None, None)


def check_base(base: Path) -> errors.Diagnostic | None:
    """Refuse a base as `check` does a root; it is never written, so it may lie in a package.

    Returns:
        FL0609 where it has nothing to read: it is not there, say.

    Raises:
        CacheError: FL0601 for something else than a directory, FL0602 where another user can write.
    """
    insecure = "`chmod -R go-w` it if it is yours, or name another with FUSELINE_CACHE_BASE"
    _check_directory(base, "name another directory with FUSELINE_CACHE_BASE", insecure)
    try:
        found = _nothing_in(base)
    except OSError as error:
        found = error.strerror or str(error)
    if not found:
        return None
    expected = f"a directory with {VERSION}/entries"
    return errors.CACHE_BASE_EMPTY.diagnostic(where=str(base), found=found, expected=expected)


def _nothing_in(base: Path) -> str:
    """Why no entry can be read from a base; empty where some may be."""
    base.stat()
    entries = base / VERSION / "entries"
    if os.access(entries, os.R_OK | os.X_OK):
        return ""
    if entries.exists():
        return "entries that cannot be read"
    others = sorted(path.name for path in base.iterdir() if re.fullmatch(r"v\d+", path.name))
    return f"entries of {', '.join(others)}" if others else "no entries"


def _check_directory(root: Path, no_directory: str | None, insecure: str | None) -> None:
    """Refuse what is no directory of ours, with these hints; what is not there is fine."""
    try:
        status = root.stat()
    except NotADirectoryError:
        raise errors.CACHE_NOT_A_DIRECTORY.error(where=str(root), hint=no_directory) from None
    except OSError:
        return  # not there yet, or `unreachable`
    if not stat.S_ISDIR(status.st_mode):
        raise errors.CACHE_NOT_A_DIRECTORY.error(where=str(root), hint=no_directory)
    if writable_by_others(status):
        mode = stat.S_IMODE(status.st_mode)
        found = f"mode {mode:04o}, owner uid {status.st_uid}"
        expected = f"mode 0700, owner uid {os.getuid()}"
        raise errors.CACHE_INSECURE.error(
            where=str(root), found=found, expected=expected, hint=insecure
        )


def unreachable(root: Path) -> str:
    """Why the system does not let us look at a directory, if there is one; empty where it does."""
    try:
        root.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def make(folder: Path) -> None:
    """Make a directory, and those above it, for this user only."""
    if folder.is_dir():
        return
    make(folder.parent)  # `parents=True` would give these the default mode
    folder.mkdir(mode=0o700, exist_ok=True)


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
    errors.CACHE_FALLBACK.warn(where=str(root), found=reason)


def warn_of_base(problem: errors.Diagnostic) -> None:
    """Say of a base that it has nothing to read, once in a process."""
    where = Path(problem.where or "")
    if where in _warned:
        return
    _warned.add(where)
    errors.warn(problem)


def _remove(root: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork of it
        shutil.rmtree(root, ignore_errors=True)
