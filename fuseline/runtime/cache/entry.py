"""A cache entry: its key, what it holds, and how it shows that it is whole.

An entry is a flat directory of files, with two more that describe it:

* ``key.json``: the kind and the factors. The key is the digest of exactly that, so an entry can be
  checked against its own name, and two entries can be told apart factor by factor.
* ``manifest.json``: the size and digest of every other file.

Nothing in them names a path, a time, a user or a host, so an entry is the same wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Factors: TypeAlias = Mapping[str, Json]
Trust: TypeAlias = Callable[[str, os.stat_result], bool]
"""Says of a file, by name and status, that its digest need not be computed."""

SCHEMA = 1
VERSION = f"v{SCHEMA}"
"""The folder, in a cache, of the entries of this schema."""
KEY_FILE = "key.json"
MANIFEST_FILE = "manifest.json"
FLUSH_BYTES = 16 << 20
"""Files from this size on are flushed to disk: they are dear to build again. A smaller one that a
power failure tears is found by its digest, and rebuilt."""

_CHUNK = 1 << 20


class DamagedEntryError(Exception):
    """An entry that is not what its name and its manifest say, or that others can write."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of an entry."""

    size: int
    digest: str


@dataclass(frozen=True)
class Entry:
    """A published entry: where it lies, the factors of its key, and its files by name."""

    kind: str
    key: str
    path: Path
    factors: Factors
    files: Mapping[str, FileRecord]

    def file(self, name: str) -> Path:
        """The path of one file of this entry."""
        if name not in self.files:
            raise KeyError(f"{self.kind} entry {self.key[:12]} has no file {name!r}")
        return self.path / name

    @property
    def name(self) -> str:
        """What a person would call it: the factor ``name``, or the kind."""
        return name_of(self.kind, self.factors)

    @property
    def size(self) -> int:
        """Bytes of its files, the descriptions not counted."""
        return sum(record.size for record in self.files.values())

    @property
    def used(self) -> float:
        """When it was last used, in seconds since the epoch; 0 if it is gone."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0


def name_of(kind: str, factors: Factors) -> str:
    """What a person would call an entry; fit for a terminal, whatever was imported."""
    name = factors.get("name")
    return printable(name) if isinstance(name, str) else kind


def printable(text: str) -> str:
    """The text, with escapes where it has something that a terminal would act on."""
    return text if text.isprintable() else ascii(text)[1:-1]


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError, TypeError: for what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(kind: str, factors: Factors) -> str:
    """The key of an entry: SHA-256 of its kind and factors in canonical JSON.

    Raises:
        ValueError: a factor is an absolute path, which would tie the entry to one machine.
    """
    for name, value in flatten(factors).items():
        if isinstance(value, str) and value.startswith(os.sep):
            raise ValueError(f"the factor {name} of a {kind} entry is a path: {value}")
    return hashlib.sha256(key_text(kind, factors).encode()).hexdigest()


def flatten(factors: Factors, prefix: str = "") -> dict[str, Json]:
    """The factors with nested mappings spelled ``outer.inner``."""
    flat: dict[str, Json] = {}
    for name, value in factors.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def seal(folder: Path, kind: str, factors: Factors) -> None:
    """Describe what was built in `folder`, and make it readable by its owner only.

    Raises:
        ValueError: something other than plain files was built, or one has a reserved name.
    """
    records: dict[str, FileRecord] = {}
    for path in sorted(folder.iterdir()):
        if path.name in (KEY_FILE, MANIFEST_FILE) or not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"a {kind} entry cannot hold {path.name!r}")
        path.chmod(0o600)
        record = _record(path)
        records[path.name] = record
        if record.size >= FLUSH_BYTES:
            flush(path)
    _write(folder / KEY_FILE, key_text(kind, factors))
    _write(folder / MANIFEST_FILE, manifest_text(records))


def load(folder: Path, kind: str, key: str, *, trust: Trust | None = None) -> Entry:
    """Read the entry in `folder` and check it; a file that `trust` accepts is not read for that.

    Raises:
        FileNotFoundError: there is none.
        DamagedEntryError: it is not whole, not what its name says, or others can write to it.
    """
    _refuse_insecure(folder)
    try:
        described = json.loads((folder / KEY_FILE).read_text())
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        factors = cast("Factors", described["factors"])
        files = {
            str(name): FileRecord(int(record["size"]), str(record["sha256"]))
            for name, record in manifest["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedEntryError(f"its description cannot be read: {error!r}") from error
    if described["kind"] != kind or key_of(kind, factors) != key:
        raise DamagedEntryError("its factors do not give its key")
    found = {path.name for path in folder.iterdir()} - {KEY_FILE, MANIFEST_FILE}
    if found != set(files):
        raise DamagedEntryError(f"it holds {sorted(found)}, its manifest lists {sorted(files)}")
    for name, record in files.items():
        _check(folder / name, record, trust)
    return Entry(kind, key, folder, factors, files)


def writable_by_others(status: os.stat_result) -> bool:
    """Whether anyone but this user and root could have written here."""
    foreign = status.st_uid not in (os.getuid(), 0)
    return foreign or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _check(path: Path, record: FileRecord, trust: Trust | None) -> None:
    status = _refuse_insecure(path)
    if status.st_size != record.size:
        raise DamagedEntryError(f"{path.name} has {status.st_size} bytes, not {record.size}")
    if trust is not None and trust(path.name, status):
        return
    if _record(path).digest != record.digest:
        raise DamagedEntryError(f"{path.name} does not have the digest of its manifest")


def _refuse_insecure(path: Path) -> os.stat_result:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise DamagedEntryError(f"{path.name} is a symbolic link")
    if writable_by_others(status):
        mode, owner = stat.S_IMODE(status.st_mode), status.st_uid
        raise DamagedEntryError(f"another user can write {path.name} ({mode:04o}, uid {owner})")
    return status


def key_text(kind: str, factors: Factors) -> str:
    """The text of ``key.json``, whose digest is the key."""
    return canonical({"schema": SCHEMA, "kind": kind, "factors": dict(factors)})


def manifest_text(files: Mapping[str, FileRecord]) -> str:
    """The text of ``manifest.json``."""
    records = {name: {"size": r.size, "sha256": r.digest} for name, r in files.items()}
    return canonical({"schema": SCHEMA, "files": records})


def _record(path: Path) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size, digest.hexdigest())


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def flush(path: Path) -> None:
    """Have the system write a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
