"""What a file of entries holds; nothing of it is believed.

Names, sizes, counts and the spelling of everything are checked before a single entry is looked at,
and reading takes no more memory than the limits here allow. What is not checked here is that each
file has its digest, for which all of it has to be read: see `importing`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from fuseline import errors
from fuseline.runtime.cache import plain_zip
from fuseline.runtime.cache.entry import (
    KEY_FILE,
    MANIFEST_FILE,
    SCHEMA,
    Factors,
    FileRecord,
    key_of,
    key_text,
    manifest_text,
    name_of,
    printable,
)
from fuseline.runtime.cache.exporting import (
    FOLDER,
    FORMAT,
    FORMAT_FILE,
    FORMAT_VERSION,
    PORTABLE_KIND,
    PORTABLE_NAME,
    format_text,
)
from fuseline.runtime.cache.plain_zip import MalformedError, Member

MOST_DESCRIPTION = 4 << 20
MOST_FILES = 1000
"""Limits: bytes of one description, and files of an entry."""

_WRONG_JSON = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(RecursionError, OverflowError),
)
"""What comes of JSON that was not written by us."""

_KEY = re.compile(r"[0-9a-f]{64}")


class VersionError(Exception):
    """Another version was found than is expected."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.found, self.expected = found, expected


@dataclass
class Incoming:
    """An entry in the file.

    Attributes:
        files: its members by name.
        name: what a person would call it.
        records: size and digest that each file must have.
        present: whether the cache holds it.
    """

    kind: str
    key: str
    files: dict[str, Member] = field(default_factory=dict[str, Member])
    name: str = ""
    records: Mapping[str, FileRecord] = field(default_factory=dict[str, FileRecord])
    present: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.kind} {self.key[:12]}"

    @property
    def size(self) -> int:
        """Bytes of its files, the descriptions not counted."""
        described = (KEY_FILE, MANIFEST_FILE)
        return sum(member.size for name, member in self.files.items() if name not in described)


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """The file; anything but a plain one is refused, as a pipe might never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise MalformedError(error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MalformedError("it is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def contents(path: Path, file: BinaryIO, most_bytes: int) -> list[Incoming]:
    """The entries of a file, of which all is known but that their files have their digests.

    Raises:
        MalformedError: the file is not what `exporting` writes.
        VersionError: it is what another version writes.
        CacheError: FL0612, where it holds more than `most_bytes`.
    """
    members = plain_zip.read_members(file)
    if not members or members[-1].name != FORMAT_FILE:
        raise MalformedError(f"it has no {FORMAT_FILE}")
    text = _described(file, members[-1])
    _check_version(_json(FORMAT_FILE, text))
    found = _grouped(members[:-1])
    total = sum(member.size for member in members)
    if total > most_bytes:
        raise errors.CACHE_FILE_TOO_LARGE.error(
            where=str(path),
            found=f"{total} bytes",
            expected=f"at most {most_bytes}",
            hint="--max-size allows more",
        )
    size = sum(entry.size for entry in found)
    if text != format_text(len(found), size).encode():
        raise MalformedError(f"{FORMAT_FILE} is not that of {len(found)} entries, {size} bytes")
    for entry in found:
        _describe(entry, file)
    return found


def _check_version(known: Mapping[str, object]) -> None:
    if known.get("format") != FORMAT:
        raise MalformedError(f"{FORMAT_FILE} is that of something else")
    version, schema = known.get("version"), known.get("schema")
    if not isinstance(version, int) or not isinstance(schema, int):
        raise MalformedError(f"{FORMAT_FILE} has no version")
    if (version, schema) != (FORMAT_VERSION, SCHEMA):
        raise VersionError(
            f"version {version}, entries of schema {schema}",
            f"version {FORMAT_VERSION}, entries of schema {SCHEMA}",
        )


def _grouped(members: Sequence[Member]) -> list[Incoming]:
    """The entries by their members' names, which say nothing that leads elsewhere."""
    found: dict[str, Incoming] = {}
    for member in members:
        folder, kind, key, name = [*member.name.split("/"), "", "", "", ""][:4]
        if (
            member.name != f"{FOLDER}/{kind}/{key}/{name}"
            or folder != FOLDER
            or not PORTABLE_KIND.fullmatch(kind)
            or not _KEY.fullmatch(key)
            or not PORTABLE_NAME.fullmatch(name)
        ):
            raise MalformedError(f"{member.name} is no file of an entry")
        entry = found.setdefault(key, Incoming(kind, key))
        if entry.kind != kind:
            raise MalformedError(f"the key {key[:12]} is there twice")
        entry.files[name] = member
        if len(entry.files) > MOST_FILES:
            raise MalformedError(f"{entry.label} has more than {MOST_FILES} files")
    return list(found.values())


def _describe(entry: Incoming, file: BinaryIO) -> None:
    """Read what describes an entry, and hold the entry to that; it must be spelled as we do it."""
    for name in (KEY_FILE, MANIFEST_FILE):
        if name not in entry.files:
            raise MalformedError(f"{entry.label} has no {name}")
    texts = {n: _described(file, entry.files[n]) for n in (KEY_FILE, MANIFEST_FILE)}
    known, manifest = (_json(f"{name} of {entry.label}", text) for name, text in texts.items())
    for schema in (known.get("schema"), manifest.get("schema")):
        if isinstance(schema, int) and schema != SCHEMA:
            raise VersionError(f"{entry.label} of schema {schema}", f"schema {SCHEMA}")
    try:
        factors = cast("Factors", known["factors"])
        spelled = key_text(entry.kind, factors).encode()
        is_key = key_of(entry.kind, factors) == entry.key and spelled == texts[KEY_FILE]
        entry.name = name_of(entry.kind, factors)
        files = cast("dict[str, dict[str, Any]]", manifest["files"])
        entry.records = {n: FileRecord(int(r["size"]), str(r["sha256"])) for n, r in files.items()}
        is_manifest = manifest_text(entry.records).encode() == texts[MANIFEST_FILE]
    except _WRONG_JSON as error:
        said = printable(str(error))[:200]
        raise MalformedError(f"the description of {entry.label} makes no sense: {said}") from error
    if not is_key:
        raise MalformedError(f"the factors of {entry.label} do not give its key")
    sizes = {n: m.size for n, m in entry.files.items() if n not in texts}
    if not is_manifest or sizes != {n: record.size for n, record in entry.records.items()}:
        raise MalformedError(f"the manifest of {entry.label} does not list its files")
    described = {n: FileRecord(len(t), hashlib.sha256(t).hexdigest()) for n, t in texts.items()}
    entry.records = {**entry.records, **described}


def _described(file: BinaryIO, member: Member) -> bytes:
    if member.size > MOST_DESCRIPTION:
        raise MalformedError(f"{member.name} has more than {MOST_DESCRIPTION} bytes")
    return b"".join(plain_zip.read(file, member))


def _json(name: str, text: bytes) -> dict[str, object]:
    try:
        found: object = json.loads(text)
    except _WRONG_JSON as error:
        raise MalformedError(f"{name} is no JSON") from error
    if not isinstance(found, dict):
        raise MalformedError(f"{name} is no mapping")
    return cast("dict[str, object]", found)
