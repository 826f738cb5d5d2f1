"""The file: a zip without compression whose members are aligned, so that they can be mapped.

The same members give the same bytes: they lie in the order in which they are added, with one time
stamp, and nothing of the machine. A file is written beside its name and renamed when it is whole.
Reading trusts nothing: see `Archive.open`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fuseline import errors

ALIGNMENT = 64
"""Of members in the file, in bytes; `PAGE` for what is mapped as a whole."""

PAGE = 4096
MOST_MEMBERS = 100_000
MOST_DIRECTORY = 64 << 20
"""Members, and bytes of their names and headers, that a file may have."""

_DATE = (1980, 1, 1, 0, 0, 0)
_LOCAL = 30
"""Bytes of a local header without name and extra fields."""

_PADDING = 0xD935
"""The extra field that zip tools use to align members."""


@dataclass(frozen=True)
class Member:
    """What the manifest says of a member.

    Attributes:
        sha256: of its bytes, in hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO, None, None]:
    """A file beside a path, which takes its place when the block has ended well; else it is gone.

    Raises:
        ArtifactError: FL1106, where it cannot be written.

    """
    temporary: Path | None = None
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(number, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        found = os.strerror(error.errno) if error.errno else str(error)
        raise errors.ARTIFACT_UNWRITABLE.error(str(path), found=found) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


class Writer:
    """Writes an archive into a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.members: dict[str, Member] = {}
        self._file = file
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def add(
        self, name: str, size: int, parts: Iterable[bytes | memoryview], align: int = 0
    ) -> None:
        """Add a member of so many bytes, in parts."""
        assert name not in self.members, f"{name} is there already"
        info = zipfile.ZipInfo(name, _DATE)
        info.create_system, info.external_attr = 3, 0o644 << 16
        info.file_size = size
        large = size >= 1 << 31
        info.extra = _padding(self._file.tell(), len(name.encode()), 20 * large, align or ALIGNMENT)
        with self._zip.open(info, "w", force_zip64=large) as out:
            self.members[name] = copied(parts, out.write)
        assert info.file_size == size, f"{name} has {info.file_size} bytes, not {size}"

    def add_bytes(self, name: str, data: bytes, align: int = 0) -> None:
        """Add a member."""
        self.add(name, len(data), [data], align)

    def end(self) -> None:
        """Write the directory."""
        self._zip.close()


def copied(parts: Iterable[bytes | memoryview], write: Callable[[Any], object]) -> Member:
    """Write parts one after the other; what they were."""
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        write(part)
        size += len(part)
    return Member(digest.hexdigest(), size)


def _padding(start: int, name: int, other: int, align: int) -> bytes:
    """The extra field that brings a member's data to a multiple of ``align``."""
    missing = -(start + _LOCAL + name + other) % align
    if 0 < missing < 4:
        missing += align
    return struct.pack("<HH", _PADDING, missing - 4) + bytes(missing - 4) if missing else b""


class Archive:
    """An archive that is mapped into memory; `data` gives the bytes of a member."""

    def __init__(self, path: Path, mapped: mmap.mmap, places: dict[str, tuple[int, int]]) -> None:
        self.path = path
        self._mapped = mapped
        self._view = memoryview(mapped)
        self._places = places

    @classmethod
    def open(cls, path: Path) -> Archive:
        """Map a file, and find its members.

        Names, sizes, offsets and counts are checked against the file and each other, before
        anything is made of them: a name is relative and in canonical form, a member is stored as it
        is, no two share a name or a byte.

        Raises:
            ArtifactError: FL0301, if the file cannot be read; FL0302, if it is no archive of ours,
                or damaged.

        """
        try:
            with path.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise errors.ARTIFACT_UNREADABLE.error(str(path), found="it is no file")
                if not os.fstat(file.fileno()).st_size:
                    raise damaged(path, "an empty file")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            found = os.strerror(error.errno) if error.errno else str(error)
            raise errors.ARTIFACT_UNREADABLE.error(str(path), found=found) from error
        try:
            return cls(path, mapped, _members(memoryview(mapped)))
        except (_OddError, struct.error) as error:
            raise damaged(path, str(error)) from error

    @property
    def names(self) -> list[str]:
        """The names of all members, as they lie in the file."""
        return list(self._places)

    def data(self, name: str) -> memoryview:
        """The bytes of a member. They may be written, and are then this process's alone.

        Raises:
            ArtifactError: FL0302, without such a member.

        """
        if name not in self._places:
            raise damaged(self.path, f"no member {name!r}")
        start, size = self._places[name]
        return self._view[start : start + size]

    def checked(self, name: str, member: Member) -> memoryview:
        """The bytes of a member that the manifest knows.

        Raises:
            ArtifactError: FL0303, where they are others.

        """
        data = self.data(name)
        found = hashlib.sha256(data).hexdigest()
        if len(data) != member.size or found != member.sha256:
            expected = f"{member.size} bytes of digest {member.sha256[:16]}"
            raise errors.ARTIFACT_DIGEST.error(
                f"{self.path}, {name}",
                found=f"{len(data)} bytes of digest {found[:16]}",
                expected=expected,
            )
        return data


def damaged(path: Path, found: str) -> errors.FuselineError:
    """FL0302: the file is not what it should be."""
    return errors.ARTIFACT_DAMAGED.error(str(path), found=found)


# -- reading ---------------------------------------------------------------------------------------

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_ALL16, _ALL32 = 0xFFFF, 0xFFFFFFFF


class _OddError(Exception):
    """What is wrong with a file."""


def _members(data: memoryview) -> dict[str, tuple[int, int]]:
    """Where the data of each member begin, and how many bytes they are.

    Only what `Writer` writes is taken: one disk, no comment, no compression, no encryption.
    """
    count, start, size = _directory(data)
    if count > MOST_MEMBERS or size > MOST_DIRECTORY:
        raise _OddError(f"a directory of {count} members in {size} bytes")
    places: dict[str, tuple[int, int]] = {}
    spans: list[tuple[int, int]] = [(start, len(data))]
    at, end = start, start + size
    for _ in range(count):
        if at + _CENTRAL.size > end:
            raise _OddError("a directory that ends in the middle")
        fields = _CENTRAL.unpack_from(data, at)
        sign, flags, method = fields[0], fields[3], fields[4]
        length, extra, comment = fields[10:13]
        packed, whole, place = fields[8], fields[9], fields[16]
        at += _CENTRAL.size
        if sign != b"PK\1\2" or flags & ~0x800 or method or comment or fields[13]:
            raise _OddError("a member that is compressed, encrypted, or in another file")
        if at + length + extra > end:
            raise _OddError("a directory that ends in the middle")
        name = _name(bytes(data[at : at + length]))
        packed, whole, place = _large(
            (packed, whole, place), bytes(data[at + length : at + length + extra])
        )
        at += length + extra
        if name in places:
            raise _OddError(f"two members {name!r}")
        if packed != whole:
            raise _OddError(f"{name!r} of two sizes")
        first = _data_of(data, name, place)
        if first + whole > start:
            raise _OddError(f"{name!r} that reaches beyond the file")
        places[name] = (first, whole)
        spans.append((place, first + whole))
    spans.sort()
    if at != end or any(one[1] > other[0] for one, other in pairwise(spans)):
        raise _OddError("members that overlap")
    return places


def _directory(data: memoryview) -> tuple[int, int, int]:
    """How many members there are, where their directory begins, and its bytes."""
    end = len(data) - _END.size
    if end < 0 or bytes(data[end : end + 4]) != b"PK\5\6":
        raise _OddError("no end of a zip file")
    _, disk, other, here, count, size, start, comment = _END.unpack_from(data, end)
    if disk or other or comment or here != count:
        raise _OddError("a zip file in several parts, or with a comment")
    if _ALL16 in (here, count) or _ALL32 in (size, start):
        at = end - _LOCATOR.size
        sign, _, place, _ = _LOCATOR.unpack_from(data, at) if at >= 0 else (b"", 0, 0, 0)
        if sign != b"PK\6\7" or place + _END64.size > at:
            raise _OddError("no end of a large zip file")
        fields = _END64.unpack_from(data, place)
        if fields[0] != b"PK\6\6":
            raise _OddError("no end of a large zip file")
        count, size, start, end = fields[7], fields[8], fields[9], place
    if start + size != end:
        raise _OddError("a directory that is not where its end says")
    return count, start, size


def _large(values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Sizes and place of a member, those that do not fit into 32 bits from its extra field."""
    wanted = [i for i, value in enumerate(values) if value == _ALL32]
    found = list(values)
    while extra and wanted:
        if len(extra) < 4:
            raise _OddError("an extra field that ends in the middle")
        kind, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == 1:
            if len(body) < 8 * len(wanted):
                raise _OddError("an extra field that ends in the middle")
            for number, i in enumerate(wanted):
                (found[i],) = struct.unpack_from("<Q", body, 8 * number)
            wanted = []
    if wanted:
        raise _OddError("a member of unknown size")
    return found[0], found[1], found[2]


def _data_of(data: memoryview, name: str, place: int) -> int:
    """Where the data of a member begin, whose local header lies somewhere."""
    if place + _HEADER.size > len(data):
        raise _OddError(f"{name!r} that begins beyond the file")
    fields = _HEADER.unpack_from(data, place)
    length, extra = fields[9:11]
    first = place + _HEADER.size + length + extra
    own = bytes(data[place + _HEADER.size : place + _HEADER.size + length])
    if fields[0] != b"PK\3\4" or own != name.encode() or fields[3]:
        raise _OddError(f"{name!r} with another header than its entry")
    return first


def _name(raw: bytes) -> str:
    """The name of a member: relative, by forward slashes, and only one way to write it."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _OddError(f"a name {raw[:40]!r}") from None
    path = PurePosixPath(name)
    plain = name and "\\" not in name and "\0" not in name and str(path) == name
    if not plain or path.is_absolute() or ".." in path.parts or name == ".":
        raise _OddError(f"a name {name[:80]!r}")
    return name


__all__ = ["ALIGNMENT", "PAGE", "Archive", "Member", "Writer", "copied", "damaged", "replacing"]
