"""Cache entries in one file, to be taken to another machine: its form, and how it is written.

    entries/<kind>/<key>/<name>   the files of each entry, key.json and manifest.json among them
    format.json                   what this is: format, version, schema, number of entries, bytes

It is a zip without compression (see `plain_zip`), the same bytes for the same entries. Like the
entries themselves it names no path, time, user or host. See `importing` for the way back.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fuseline import errors
from fuseline.runtime.cache import plain_zip
from fuseline.runtime.cache.entry import (
    KEY_FILE,
    MANIFEST_FILE,
    SCHEMA,
    DamagedEntryError,
    Entry,
    FileRecord,
    canonical,
    key_text,
    load,
    manifest_text,
)
from fuseline.runtime.cache.layer import damage_of
from fuseline.runtime.cache.seen import trust_all

FORMAT, FORMAT_VERSION = "fuseline-cache", 1
FORMAT_FILE = "format.json"
FOLDER = "entries"

PORTABLE_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")
PORTABLE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
"""Kinds and names of files as they may stand in a file of entries: no one leads out of a folder."""

Report = Callable[[int, int], None]
"""Is told how many entries are done, and of how many."""

_DAMAGE_HINT = "it was left out; `fuseline cache verify` says what to do"


@dataclass(frozen=True)
class Exported:
    """What was written: the entries in order, and what is wrong with those left out."""

    entries: tuple[Entry, ...]
    damaged: tuple[errors.Diagnostic, ...]

    @property
    def bytes(self) -> int:
        """Of the entries' files."""
        return sum(entry.size for entry in self.entries)


def format_text(entries: int, total: int) -> str:
    """The text of `FORMAT_FILE`, for so many entries with so many bytes of files in all."""
    known = {"format": FORMAT, "version": FORMAT_VERSION, "schema": SCHEMA}
    return canonical({**known, "entries": entries, "bytes": total})


def export_to(path: Path, entries: Iterable[Entry], report: Report | None = None) -> Exported:
    """Write entries to a file, which is there once it is whole. What is damaged is left out.

    Raises:
        CacheError: FL0612 for more files than can be imported, FL0613 where it cannot be written.
    """
    ordered = sorted(entries, key=lambda entry: f"{entry.kind}/{entry.key}")
    whole, damaged = list[Entry](), list[errors.Diagnostic]()
    try:
        with _beside(path) as file:
            writer = plain_zip.Writer(file)
            for done, entry in enumerate(ordered, 1):
                before = writer.count
                try:
                    whole.append(_add(writer, entry))
                except FileNotFoundError:
                    writer.cut(before)  # pruned meanwhile
                except DamagedEntryError as damage:
                    writer.cut(before)
                    damaged.append(damage_of(entry.kind, entry.path, damage, _DAMAGE_HINT))
                if writer.count >= plain_zip.MOST_MEMBERS:
                    raise _too_many(path)
                if report is not None:
                    report(done, len(ordered))
            text = format_text(len(whole), sum(entry.size for entry in whole)).encode()
            writer.add(FORMAT_FILE, len(text), iter([text]))
            writer.close()
    except OSError as error:
        found = error.strerror or str(error)
        raise errors.CACHE_FILE_CANNOT.error(where=str(path), found=found) from error
    return Exported(tuple(whole), tuple(damaged))


def _too_many(path: Path) -> errors.FuselineError:
    return errors.CACHE_FILE_TOO_LARGE.error(
        where=str(path),
        expected=f"at most {plain_zip.MOST_MEMBERS} files",
        hint="export it in parts, with --kind, --target, --name or --since",
    )


def _add(writer: plain_zip.Writer, listed: Entry) -> Entry:
    """Add the files of an entry, and check them on the way.

    Raises:
        FileNotFoundError: it is gone.
        DamagedEntryError: it is not whole, or cannot be read.
    """
    entry = load(listed.path, listed.kind, listed.key, trust=trust_all)
    if not all(map(PORTABLE_NAME.fullmatch, entry.files)):
        raise DamagedEntryError(f"it has files with names that cannot be kept: {[*entry.files]}")
    texts = {
        KEY_FILE: key_text(entry.kind, entry.factors).encode(),
        MANIFEST_FILE: manifest_text(entry.files).encode(),
    }
    for name in sorted([*texts, *entry.files]):
        member = f"{FOLDER}/{entry.kind}/{entry.key}/{name}"
        if name in texts:
            writer.add(member, len(texts[name]), iter([texts[name]]))
        else:
            record = entry.files[name]
            writer.add(member, record.size, _checked(entry.path / name, record))
    return entry


def _checked(path: Path, record: FileRecord) -> Iterator[bytes]:
    """The bytes of a file; at the end it must have had its size and digest."""
    digest, left = hashlib.sha256(), record.size
    for chunk in _read(path):
        left -= len(chunk)
        if left < 0:
            break
        digest.update(chunk)
        yield chunk
    if left or digest.hexdigest() != record.digest:
        raise DamagedEntryError(f"{path.name} does not have the digest of its manifest")


def _read(path: Path) -> Iterator[bytes]:
    """The bytes of a file of an entry; that it cannot be read is a damage, not our disk's."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(plain_zip.CHUNK):
                yield chunk
    except OSError as error:
        raise DamagedEntryError(f"{path.name} cannot be read: {error.strerror}") from error


@contextmanager
def _beside(path: Path) -> Generator[BinaryIO]:
    """A new file that takes the place of `path` once the block has ended well; of a link, the place
    of the file that it leads to. Only a plain file is replaced: no pipe, and no device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Is a directory" if path.is_dir() else "Is no plain file")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        with suppress(OSError):
            fresh.unlink()
