"""One directory of the cache: it finds entries, and publishes new ones by one atomic rename.

    <root>/v1/entries/<kind>/<first two digits>/<key>/   published entries
    <root>/v1/staging/<kind>-<random>/                   being built; held by their builder
    <root>/v1/locks/<key>.lock                           so that others wait rather than build too
    <root>/v1/aside/<key>-<random>/                      damaged entries, the last few
    <root>/v1/seen/<key>.json                            large files that were checked (see seen.py)

When an entry was last used is the modification time of its directory, which no digest covers.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fuseline import errors
from fuseline.runtime.cache import entry as entries
from fuseline.runtime.cache.entry import VERSION, DamagedEntryError, Entry, Factors
from fuseline.runtime.cache.location import make
from fuseline.runtime.cache.lock import directory_is_held, hold_directory, holding
from fuseline.runtime.cache.seen import Seen, trust_all

logger = logging.getLogger(__name__)

Build = Callable[[Path], None]

_VANISHED = (errno.ENOENT, errno.ESTALE)
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT)
"""What a rename says where an entry, or what should be none, is in the way, or its folder gone."""
KEPT_ASIDE = 8
ABANDONED_SECONDS = 60.0
"""A staging directory that nobody holds is removed from this age on: one that was made a moment
ago may not be held yet."""


class VanishedError(OSError):
    """Somebody has deleted the directory of an entry while it was built."""


class Layer:
    """A cache directory; `frozen` ones are read and never changed.

    What was checked of a frozen one is noted in the cache directory `notes`, if that is given.
    """

    def __init__(self, root: Path, *, frozen: bool = False, notes: Path | None = None) -> None:
        self.root = root
        self.frozen = frozen
        self._base = root / VERSION
        self._swept = False
        self._seen = Seen((notes or root) / VERSION / "seen")
        self._noting = notes is not None

    def path(self, kind: str, key: str) -> Path:
        """Where an entry lies or would lie."""
        return self._base / "entries" / kind / key[:2] / key

    def find(self, kind: str, key: str) -> Entry | None:
        """The entry, checked in full. A damaged one is set aside, reported, and None."""
        path = self.path(kind, key)
        try:
            found = entries.load(path, kind, key, trust=self._seen.trusts(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedEntryError as damage:
            logger.warning("%s", damage_of(kind, path, damage))
            self._set_aside(path)
            return None
        except OSError as error:
            logger.warning("cannot read the cache entry %s: %s", path, error)
            return None
        if self._noting or not self.frozen:
            self._seen.remember(found)
        if not self.frozen:
            with suppress(OSError):
                os.utime(path)
        return found

    def verify(self, kind: str, key: str) -> Entry:
        """The entry after reading every byte of it; nothing is set aside.

        Raises:
            DamagedEntryError, OSError: it is not whole, or cannot be read.
        """
        return entries.load(self.path(kind, key), kind, key)

    def build(
        self, kind: str, key: str, factors: Factors, build: Build, lock_timeout: float
    ) -> tuple[Entry, bool]:
        """Build and publish an entry, unless another process does so meanwhile.

        Returns:
            The entry, and whether it was built here.

        Raises:
            VanishedError: it was deleted meanwhile.
            OSError: this directory cannot be written; whatever `build` raises.
        """
        make(self._base / "locks")
        with holding(self._base / "locks" / f"{key}.lock", lock_timeout):
            found = self.find(kind, key)
            if found is not None:
                return found, False
            with self.staging(kind) as folder:
                try:
                    build(folder)
                    entries.seal(folder, kind, factors)
                    return self.publish(folder, kind, key)
                except OSError as error:
                    if error.errno in _VANISHED and not folder.is_dir():
                        raise VanishedError(*error.args) from error
                    raise

    @contextmanager
    def staging(self, label: str) -> Generator[Path]:
        """A directory of one's own, in which entries are made; what is left in it is removed."""
        make(self._base / "staging")
        self._sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{label}-", dir=self._base / "staging"))
        held = hold_directory(folder)
        try:
            yield folder
        finally:
            os.close(held)
            shutil.rmtree(folder, ignore_errors=True)  # nothing is left of it if it was published

    def publish(self, folder: Path, kind: str, key: str) -> tuple[Entry, bool]:
        """Make a described entry that lies in staging one that others find.

        Returns:
            The entry, and whether it is this one: another process may have published it meanwhile.

        Raises:
            OSError: this directory cannot be written.
        """
        target = self.path(kind, key)
        for last in (False, False, True):
            make(target.parent)
            try:
                folder.rename(target)
            except OSError as error:
                if last or error.errno not in _OCCUPIED:
                    raise
                winner = self.find(kind, key)  # which sets a damaged one aside
                if winner is not None:
                    return winner, False
            else:
                break
        published = entries.load(target, kind, key, trust=trust_all)
        self._seen.remember(published)
        return published, True

    def stored(self) -> Iterator[tuple[str, str, Path]]:
        """Kind, key and path of all that is published, without looking inside."""
        for path in sorted((self._base / "entries").glob("*/??/*")):
            yield path.parent.parent.name, path.name, path

    def remove(self, path: Path) -> bool:
        """Take an entry out at once, so that nobody sees half of it, then delete it; whether it is
        gone.
        """
        gone = self._move_aside(path)
        if gone is not None:
            shutil.rmtree(gone, ignore_errors=True)
        return not path.exists()

    def clear(self) -> bool:
        """Delete everything here but locks and what is being built right now; whether the entries
        are gone.
        """
        entries = self._base / "entries"
        moved = self._move_aside(entries) is not None or not entries.exists()
        for name in ("aside", "seen"):
            shutil.rmtree(self._base / name, ignore_errors=True)
        self._swept = False
        self._sweep(older_than=0.0)
        return moved

    def kept_aside(self) -> list[Path]:
        """Damaged entries that were kept, oldest first."""
        found = [path for path in (self._base / "aside").glob("*") if path.is_dir()]
        return sorted(found, key=_modified)

    def _set_aside(self, path: Path) -> None:
        if self.frozen or self._move_aside(path) is None:
            return
        for old in self.kept_aside()[:-KEPT_ASIDE]:
            shutil.rmtree(old, ignore_errors=True)

    def _move_aside(self, path: Path) -> Path | None:
        target = self._base / "aside" / f"{path.name[:16]}-{secrets.token_hex(4)}"
        try:
            make(target.parent)
            path.rename(target)
        except OSError:
            return None
        return target

    def _sweep(self, older_than: float = ABANDONED_SECONDS) -> None:
        """Remove, once, what builders that are no more have left in staging."""
        if self._swept:
            return
        self._swept = True
        for folder in (self._base / "staging").glob("*"):
            age = time.time() - _modified(folder)
            if age >= older_than and not directory_is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def damage_of(
    kind: str, path: Path, damage: Exception, hint: str | None = None
) -> errors.Diagnostic:
    """The diagnostic of a damaged entry."""
    label = f"{kind} {path.name[:12]}"
    return errors.CACHE_DAMAGED_ENTRY.diagnostic(
        label, where=str(path), found=str(damage), hint=hint
    )


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
