"""Taking over the entries of a file that `exporting` wrote; the file is not trusted.

What `incoming` checks is checked before anything is written, and so is the room on disk. Then all
that is new is copied into one staging directory, where each file must turn out to have the digest
of its manifest. Only when the whole file was found to be in order are the entries published, one
rename each. So a file that is not whole changes nothing, and a process that is killed leaves whole
entries and a staging directory, which a later one removes.

That says that an entry is what its exporter had. It does not say that its code is harmless.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fuseline import errors
from fuseline.runtime.cache import plain_zip
from fuseline.runtime.cache.entry import FLUSH_BYTES, DamagedEntryError, flush
from fuseline.runtime.cache.exporting import Report
from fuseline.runtime.cache.incoming import Incoming, VersionError, contents, opened
from fuseline.runtime.cache.plain_zip import MalformedError
from fuseline.runtime.cache.store import Cache


@dataclass(frozen=True)
class Imported:
    """The entries of a file: those taken over, and those that were here already."""

    new: tuple[Incoming, ...]
    present: tuple[Incoming, ...]


def import_from(
    path: Path,
    cache: Cache,
    *,
    most_bytes: int,
    dry_run: bool = False,
    report: Report | None = None,
) -> Imported:
    """Take over what no layer of a cache holds yet; `dry_run` checks all of it, and writes nothing.

    A file with more than `most_bytes` is refused.

    Raises:
        CacheError: FL0610 for a file that is not whole, FL0611 for one of another version, FL0612
            for one that is too large, FL0613 where entries cannot be written; as `Cache.layers`.
    """
    try:
        with opened(path) as file:
            found = contents(path, file, most_bytes)
            for entry in found:
                entry.present = _is_here(cache, entry)
            if dry_run:
                _copy(file, found, None, report)
            else:
                _take_over(path, file, found, cache, report)
    except MalformedError as problem:
        raise errors.CACHE_FILE_DAMAGED.error(where=str(path), found=str(problem)) from problem
    except VersionError as other:
        raise errors.CACHE_FILE_VERSION.error(
            where=str(path), found=other.found, expected=other.expected
        ) from other
    new, present = ([e for e in found if e.present is here] for here in (False, True))
    return Imported(tuple(new), tuple(present))


def _is_here(cache: Cache, entry: Incoming) -> bool:
    """Whether some layer holds an entry; a damaged one counts as absent."""
    for layer in cache.layers:
        try:
            layer.verify(entry.kind, entry.key)
        except (DamagedEntryError, OSError):
            continue
        return True
    return False


def _take_over(
    path: Path, file: BinaryIO, found: list[Incoming], cache: Cache, report: Report | None
) -> None:
    """Stage what is new, and when the whole file was read, publish it."""
    layer = next((layer for layer in cache.layers if not layer.frozen), None)
    if layer is None:
        raise _cannot(cache.root, "a cache that cannot be written")
    _check_room(path, found, layer.root)
    try:
        with layer.staging("import") as staging:
            _copy(file, found, staging, report)
            for number, entry in enumerate(found):
                if not entry.present:
                    _, here = layer.publish(staging / str(number), entry.kind, entry.key)
                    entry.present = not here
    except (OSError, DamagedEntryError) as error:
        raise _cannot(layer.root, getattr(error, "strerror", None) or str(error)) from error


def _check_room(path: Path, found: list[Incoming], root: Path) -> None:
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    needed = sum(sum(m.size for m in e.files.values()) for e in found if not e.present)
    if needed > free:
        raise errors.CACHE_FILE_TOO_LARGE.error(
            where=str(path),
            found=f"{needed} bytes to import",
            expected=f"at most {free}, which are free in {root}",
            hint="free some space, or name another directory with FUSELINE_CACHE_DIR",
        )


def _copy(
    file: BinaryIO, found: list[Incoming], staging: Path | None, report: Report | None
) -> None:
    """Check every byte of the file, and write what is new below `staging`, if that is given."""
    for number, entry in enumerate(found):
        folder = None if staging is None or entry.present else staging / str(number)
        if folder is not None:
            folder.mkdir(mode=0o700)
        for name, member in entry.files.items():
            chunks = plain_zip.read(file, member)
            if folder is None:
                digest = _digest(chunks)
            else:
                digest = _digest(_written(folder / name, chunks))
            if digest != entry.records[name].digest:
                raise MalformedError(f"{name} of {entry.label} does not have its digest")
        if report is not None:
            report(number + 1, len(found))


def _digest(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _written(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, once they are written to a new file for its owner only."""
    size, flags = 0, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            size += len(chunk)
            yield chunk
    if size >= FLUSH_BYTES:
        flush(path)


def _cannot(root: Path, found: str) -> errors.FuselineError:
    return errors.CACHE_FILE_CANNOT.error(where=str(root), found=found)
