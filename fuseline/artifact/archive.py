"""The file: a zip without compression whose members are aligned, so that they can be mapped.

The same members give the same bytes: they lie in the order in which they are added, with one time
stamp, and nothing of the machine. A file is written beside its name and renamed when it is whole.
Reading trusts nothing: see `Archive.open`. Only weights are mapped; all else is copied out of the
file before it is looked at, so that nobody changes what was checked, and a file that is cut short
meanwhile gives a diagnostic.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import tempfile
import weakref
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

_PART = 4 << 20
"""Bytes that are read at once where a digest is all that is wanted."""

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


class _File:
    """A regular file that is open for reading, and how long it was then."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
        # Without O_NONBLOCK, to open a pipe is to wait for somebody who writes.
        self.number = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        weakref.finalize(self, os.close, self.number)
        about = os.fstat(self.number)
        if not stat.S_ISREG(about.st_mode):
            raise errors.ARTIFACT_UNREADABLE.error(str(path), found="it is no file")
        self.size = about.st_size

    def read(self, start: int, size: int) -> bytes:
        """So many bytes; an `_OddError`, where the file has become shorter."""
        found: list[bytes] = []
        end = start + size
        while start < end:
            part = os.pread(self.number, end - start, start)
            if not part:
                raise _OddError("a file that was cut short while it was read")
            found.append(part)
            start += len(part)
        return found[0] if len(found) == 1 else b"".join(found)

    def parts(self, start: int, size: int) -> Generator[bytes, None, None]:
        """So many bytes, some at a time."""
        for at in range(start, start + size, _PART):
            yield self.read(at, min(_PART, start + size - at))

    def mapped(self) -> memoryview:
        """All of it, in memory that may be written and is then this process's alone."""
        if not self.size or os.fstat(self.number).st_size < self.size:
            raise _OddError("a file that was cut short while it was read")
        return memoryview(mmap.mmap(self.number, self.size, access=mmap.ACCESS_COPY))


class Archive:
    """An archive that is open; `checked` gives the bytes of a member."""

    def __init__(self, path: Path, file: _File, places: dict[str, tuple[int, int]]) -> None:
        self.path = path
        self._file = file
        self._view: memoryview | None = None
        self._places = places

    @classmethod
    def open(cls, path: Path) -> Archive:
        """Open a file, and find its members.

        Names, sizes, offsets and counts are checked against the file and each other, before
        anything is made of them: a name is relative and in canonical form, a member is stored as it
        is, no two share a name or a byte, and no byte belongs to none.

        Raises:
            ArtifactError: FL1101, if the file cannot be read; FL1102, if it is no archive of ours,
                or damaged.

        """
        file = _opened(path)
        if not file.size:
            raise damaged(path, "an empty file")
        with _told(path):
            return cls(path, file, _members(file))

    @property
    def names(self) -> list[str]:
        """The names of all members, as they lie in the file."""
        return list(self._places)

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self._file.size

    def size(self, name: str) -> int:
        """The bytes of a member.

        Raises:
            ArtifactError: FL1102, without such a member.

        """
        return self._place(name)[1]

    def data(self, name: str) -> memoryview:
        """The bytes of a member, mapped. They may be written, and are then this process's alone.

        Whoever may write the file can still change what is not written yet, and where it is cut
        short, the system ends a process that reads beyond the end. So this is for weights.

        Raises:
            ArtifactError: FL1102, without such a member.

        """
        start, size = self._place(name)
        with _told(self.path):
            if self._view is None:
                self._view = self._file.mapped()
            return self._view[start : start + size]

    def read(self, name: str, at: int = 0, size: int | None = None) -> bytes:
        """A copy of the bytes of a member, or of so many of them from somewhere on.

        Raises:
            ArtifactError: FL1102, without such a member, or so many bytes.

        """
        start, whole = self._place(name)
        count = whole - at if size is None else size
        if not 0 <= at <= at + count <= whole:
            raise damaged(self.path, f"{name!r} of {whole} bytes, not {at + count}")
        with _told(self.path):
            return self._file.read(start + at, count)

    def parts(self, name: str) -> Generator[bytes, None, None]:
        """A copy of the bytes of a member, some at a time."""
        with _told(self.path):
            yield from self._file.parts(*self._place(name))

    def checked(self, name: str, member: Member) -> bytes:
        """A copy of the bytes of a member that the manifest knows.

        Raises:
            ArtifactError: FL1103, where they are others.

        """
        data = self.read(name)
        _same(f"{self.path}, {name}", _member([data]), member)
        return data

    def verify(self, name: str, member: Member) -> None:
        """Hold the bytes of a member to what the manifest says, without a copy of all of them.

        Raises:
            ArtifactError: FL1103, where they are others.

        """
        _same(f"{self.path}, {name}", _member(self.parts(name)), member)

    def _place(self, name: str) -> tuple[int, int]:
        if name not in self._places:
            raise damaged(self.path, f"no member {name!r}")
        return self._places[name]


class Beside:
    """A file that lies beside an archive and belongs to it.

    Raises:
        ArtifactError: FL1101, if it cannot be read; FL1102, if it has another size.

    """

    def __init__(self, archive: Archive, name: str, member: Member) -> None:
        if not _is_plain(name) or "/" in name:
            raise damaged(archive.path, f"a file beside it, {name[:80]!r}")
        self.path = archive.path.parent / name
        self._member = member
        self._file = _opened(self.path)
        if self._file.size != member.size:
            raise damaged(self.path, f"{self._file.size} bytes in the place of {member.size}")

    def data(self) -> memoryview:
        """Its bytes, mapped; see `Archive.data`."""
        with _told(self.path):
            return self._file.mapped() if self._file.size else memoryview(b"")

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self._file.size

    def read(self, at: int, size: int) -> bytes:
        """A copy of so many of its bytes."""
        with _told(self.path):
            return self._file.read(at, size)

    def parts(self) -> Generator[bytes, None, None]:
        """Its bytes, some at a time."""
        with _told(self.path):
            yield from self._file.parts(0, self._file.size)

    def verify(self) -> None:
        """Hold its bytes to what the manifest says.

        Raises:
            ArtifactError: FL1103, where they are others.

        """
        _same(str(self.path), _member(self.parts()), self._member)


def _same(where: str, found: Member, member: Member) -> None:
    if found != member:
        raise errors.ARTIFACT_DIGEST.error(
            where,
            found=f"{found.size} bytes of digest {found.sha256[:16]}",
            expected=f"{member.size} bytes of digest {member.sha256[:16]}",
        )


def _member(parts: Iterable[bytes]) -> Member:
    return copied(parts, len)


def _opened(path: Path) -> _File:
    try:
        return _File(path)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        found = os.strerror(number) if number else str(error)
        raise errors.ARTIFACT_UNREADABLE.error(str(path), found=found) from error


@contextmanager
def _told(path: Path) -> Generator[None, None, None]:
    """What is wrong with a file as a diagnostic."""
    try:
        yield
    except (_OddError, struct.error) as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        found = os.strerror(error.errno) if error.errno else str(error)
        raise errors.ARTIFACT_UNREADABLE.error(str(path), found=found) from error


def damaged(path: Path, found: str) -> errors.FuselineError:
    """FL1102: the file is not what it should be."""
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


def _members(file: _File) -> dict[str, tuple[int, int]]:
    """Where the data of each member begin, and how many bytes they are.

    Only what `Writer` writes is taken: one disk, no comment, no compression, no encryption, and no
    bytes between members, in which something could be that no digest knows.
    """
    count, start, size = _directory(file)
    if count > MOST_MEMBERS or size > MOST_DIRECTORY or count * _CENTRAL.size > size:
        raise _OddError(f"a directory of {count} members in {size} bytes")
    data = file.read(start, size)
    places: dict[str, tuple[int, int]] = {}
    spans: list[tuple[int, int]] = [(start, start)]
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > size:
            raise _OddError("a directory that ends in the middle")
        fields = _CENTRAL.unpack_from(data, at)
        sign, flags, method = fields[0], fields[3], fields[4]
        length, extra, comment = fields[10:13]
        at += _CENTRAL.size
        if sign != b"PK\1\2" or flags & ~0x800 or method or comment or fields[13]:
            raise _OddError("a member that is compressed, encrypted, or in another file")
        if at + length + extra > size:
            raise _OddError("a directory that ends in the middle")
        name = _name(data[at : at + length])
        packed, whole, place = _large(
            (fields[8], fields[9], fields[16]), data[at + length : at + length + extra]
        )
        at += length + extra
        if name in places:
            raise _OddError(f"two members {name!r}")
        if packed != whole:
            raise _OddError(f"{name!r} of two sizes")
        first = _data_of(file, name, place, (flags, method, *fields[5:8], whole))
        if first + whole > start:
            raise _OddError(f"{name!r} that reaches beyond the file")
        places[name] = (first, whole)
        spans.append((place, first + whole))
    spans.sort()
    if at != size or any(one[1] > other[0] for one, other in pairwise(spans)):
        raise _OddError("members that overlap")
    if spans[0][0] or any(one[1] != other[0] for one, other in pairwise(spans)):
        raise _OddError("bytes that belong to no member")
    return places


def _directory(file: _File) -> tuple[int, int, int]:
    """How many members there are, where their directory begins, and its bytes."""
    end = file.size - _END.size
    tail = file.read(end, _END.size) if end >= 0 else b""
    if tail[:4] != b"PK\5\6":
        raise _OddError("no end of a zip file")
    _, disk, other, here, count, size, start, comment = _END.unpack(tail)
    if disk or other or comment or here != count:
        raise _OddError("a zip file in several parts, or with a comment")
    at = end - _LOCATOR.size
    found = file.read(at, _LOCATOR.size) if at >= 0 else b""
    if found[:4] == b"PK\6\7":  # from 2 GB on, or 65,536 members
        small = count, size, start
        count, size, start, end = _large_directory(file, at, _LOCATOR.unpack(found)[2])
        limits = (_ALL16, _ALL32, _ALL32)
        if small != tuple(map(min, (count, size, start), limits)):
            raise _OddError("two ends of a zip file that say another")
    if start + size != end:
        raise _OddError("a directory that is not where its end says")
    return count, start, size


def _large_directory(file: _File, end: int, place: int) -> tuple[int, int, int, int]:
    """Count, size, begin and end of the directory of a large file; ``end`` is of what tells it."""
    if place + _END64.size != end:
        raise _OddError("no end of a large zip file")
    fields = _END64.unpack(file.read(place, _END64.size))
    if fields[0] != b"PK\6\6" or fields[6] != fields[7] or fields[4] or fields[5]:
        raise _OddError("no end of a large zip file")
    return fields[7], fields[8], fields[9], place


def _large(values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Sizes and place of a member, those that do not fit into 32 bits from its extra field."""
    wanted = [i for i, value in enumerate(values) if value == _ALL32]
    found = list(values)
    while extra:
        if len(extra) < 4:
            raise _OddError("an extra field that ends in the middle")
        kind, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if len(body) != size:
            raise _OddError("an extra field that ends in the middle")
        if kind == 1 and wanted and size == 8 * len(wanted):
            for number, i in enumerate(wanted):
                (found[i],) = struct.unpack_from("<Q", body, 8 * number)
            wanted = []
        elif kind != _PADDING or any(body):
            raise _OddError("an extra field that is not ours")
    if wanted:
        raise _OddError("a member of unknown size")
    return found[0], found[1], found[2]


def _data_of(file: _File, name: str, place: int, entry: tuple[int, ...]) -> int:
    """Where the data of a member begin, whose local header lies somewhere and says the same."""
    if place + _HEADER.size > file.size:
        raise _OddError(f"{name!r} that begins beyond the file")
    sign, _, *same, length, extra = _HEADER.unpack(file.read(place, _HEADER.size))
    first = place + _HEADER.size + length + extra
    if first > file.size:
        raise _OddError(f"{name!r} that begins beyond the file")
    behind = file.read(place + _HEADER.size, length + extra)
    packed, whole, _ = _large((same[5], same[6], 0), behind[length:])
    own = (*same[:5], whole)
    if sign != b"PK\3\4" or behind[:length] != name.encode() or packed != whole or own != entry:
        raise _OddError(f"{name!r} with another header than its entry")
    return first


def _name(raw: bytes) -> str:
    """The name of a member: relative, by forward slashes, and only one way to write it."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _OddError(f"a name {raw[:40]!r}") from None
    if not _is_plain(name):
        raise _OddError(f"a name {name[:80]!r}")
    return name


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    if not name.isprintable() or "\\" in name or str(path) != name:
        return False
    return not path.is_absolute() and ".." not in path.parts and name != "."


__all__ = [
    "ALIGNMENT",
    "PAGE",
    "Archive",
    "Beside",
    "Member",
    "Writer",
    "copied",
    "damaged",
    "replacing",
]
