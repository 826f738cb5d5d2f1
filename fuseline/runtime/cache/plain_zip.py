"""A zip without compression, in one spelling: the same members give the same bytes, and no other.

Members lie in the order of their names, one after the other from the start of the file, with one
time stamp and without comments, flags or gaps. So a reader needs no judgement: it takes names,
sizes and checksums from the directory at the end, spells out what a writer would have written for
them, and refuses what differs. Any program that reads zip files can read one.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MOST_MEMBERS = 250_000
LONGEST_NAME = 300
CHUNK = 1 << 20

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_TAIL = _END64.size + _LOCATOR64.size + _END.size

_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
"""What a field holds whose value is in the fields of 64 bits."""

_DATE = 1 << 5 | 1
"""The first of January of 1980, where the time of zip files begins."""
_MODE = 0o100600 << 16
_UNIX = 3 << 8
_OLD, _LARGE = 20, 45
"""The versions of the format with fields of 32 and of 64 bits."""


class MalformedError(Exception):
    """A file that no writer of this module has written; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the zip: its name, size in bytes and CRC-32, and where in the zip its header is."""

    name: str
    size: int
    crc: int
    start: int


class Writer:
    """Writes a zip to a file that is empty and can be sought in. `close` ends it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[Member] = []
        self._end = 0

    @property
    def count(self) -> int:
        """How many members there are."""
        return len(self._members)

    def add(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        """Add a member of so many bytes; names must come in order.

        Raises:
            ValueError: a name that is no plain ASCII, too long or out of order; another size.
            OSError: the file cannot be written.
        """
        if self._members and name <= self._members[-1].name:
            raise ValueError(f"{name!r} does not come after {self._members[-1].name!r}")
        if not _is_plain(name):
            raise ValueError(f"{name!r} is no name for a member")
        self._file.write(local_header(Member(name, size, 0, self._end)))
        crc = written = 0
        for chunk in chunks:
            crc, written = zlib.crc32(chunk, crc), written + len(chunk)
            self._file.write(chunk)
        if written != size:
            raise ValueError(f"{name!r} has {written} bytes, not {size}")
        member = Member(name, size, crc, self._end)
        self._file.seek(self._end)
        self._file.write(local_header(member))
        self._end = after(member)
        self._file.seek(self._end)
        self._members.append(member)

    def cut(self, count: int) -> None:
        """Take out all members but the first so many, and what was written of another."""
        del self._members[count:]
        self._end = after(self._members[-1]) if self._members else 0
        self._file.seek(self._end)
        self._file.truncate()

    def close(self) -> None:
        """Write the directory of the members."""
        self._file.write(directory(self._members))


def read_members(file: BinaryIO) -> list[Member]:
    """The members of a zip, in order; what is read is bounded, whatever the file holds.

    Raises:
        MalformedError: the file is not laid out as `Writer` does it, or cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    start = _start_of_directory(_read_at(file, max(0, size - _TAIL), _TAIL))
    if not 0 <= start < size or size - start > MOST_MEMBERS * (_CENTRAL.size + LONGEST_NAME):
        raise MalformedError("its directory is not where its end says")
    tail = _read_at(file, start, size - start)
    members = list(itertools.islice(_parsed(tail), MOST_MEMBERS))
    if tail != directory(members):
        raise MalformedError("it is not laid out as `fuseline cache export` does it")
    return members


def read(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """The bytes of a member, chunk by chunk; nothing else may move in the file meanwhile.

    Raises:
        MalformedError: they are not what the directory says, which may show at the end only.
    """
    header = local_header(member)
    if _read_at(file, member.start, len(header)) != header:
        raise MalformedError(f"{member.name} does not begin where its directory says")
    crc, left = 0, member.size
    while left:
        chunk = _read(file, min(CHUNK, left))
        if not chunk:
            raise MalformedError(f"it ends within {member.name}")
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        yield chunk
    if crc != member.crc:
        raise MalformedError(f"{member.name} does not have its checksum")


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return _read(file, size)


def _read(file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise MalformedError(f"it cannot be read: {error.strerror or error}") from error


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isascii() and name.isprintable()


def _start_of_directory(tail: bytes) -> int:
    """Where the end of a zip says that its directory begins; nothing else of it is believed."""
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise MalformedError("it does not end as a zip file does")
    start: int = _END.unpack(tail[-_END.size :])[6]
    if start != _FULL32:
        return start
    if len(tail) < _TAIL or not tail.startswith(b"PK\6\6"):
        raise MalformedError("it does not end as a large zip file does")
    return int(_END64.unpack(tail[: _END64.size])[9])


def _parsed(tail: bytes) -> Iterator[Member]:
    """What the directory lists; that it is spelled as it should be is for the caller to check."""
    at, start, last = 0, 0, ""
    while tail.startswith(b"PK\1\2", at) and len(tail) - at >= _CENTRAL.size:
        fields = _CENTRAL.unpack_from(tail, at)
        crc, size, length, extra = fields[7], fields[9], fields[10], fields[11]
        at += _CENTRAL.size
        name = tail[at : at + length].decode("latin-1")
        if not _is_plain(name):
            raise MalformedError("the name of a member is no plain text, or too long")
        if name <= last:
            raise MalformedError(f"{name} is there twice, or out of order")
        if size == _FULL32 and len(tail) - at >= length + 12:
            (size,) = struct.unpack_from("<Q", tail, at + length + 4)
        at, last = at + length + extra, name
        member = Member(name, size, crc, start)
        start = after(member)
        yield member


def after(member: Member) -> int:
    """Where the next member begins."""
    return member.start + len(local_header(member)) + member.size


def local_header(member: Member) -> bytes:
    """The header in front of a member."""
    name, large = member.name.encode(), member.size >= _FULL32
    short = _FULL32 if large else member.size
    extra = struct.pack("<2H2Q", 1, 16, member.size, member.size) if large else b""
    version = _LARGE if large else _OLD
    lengths = (len(name), len(extra))
    return (
        _LOCAL.pack(b"PK\3\4", version, 0, 0, 0, _DATE, member.crc, short, short, *lengths)
        + name
        + extra
    )


def _central(member: Member) -> bytes:
    """The entry of a member in the directory."""
    name, large, far = member.name.encode(), member.size >= _FULL32, member.start >= _FULL32
    numbers = [*[member.size] * (2 * large), *[member.start] * far]
    extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    version, short = _LARGE if numbers else _OLD, _FULL32 if large else member.size
    head = (b"PK\1\2", _UNIX | version, version, 0, 0, 0, _DATE, member.crc, short, short)
    rest = (len(name), len(extra), 0, 0, 0, _MODE, _FULL32 if far else member.start)
    return _CENTRAL.pack(*head, *rest) + name + extra


def directory(members: list[Member]) -> bytes:
    """All that follows the members: what lists them, and the end of the file."""
    listed, count = b"".join(map(_central, members)), len(members)
    offset = after(members[-1]) if members else 0
    end = b""
    if count >= _FULL16 or offset >= _FULL32:
        ends = (_END64.size - 12, _UNIX | _LARGE, _LARGE, 0, 0, count, count, len(listed), offset)
        end = _END64.pack(b"PK\6\6", *ends)
        end += _LOCATOR64.pack(b"PK\6\7", 0, offset + len(listed), 1)
        count = min(count, _FULL16)
    short = min(offset, _FULL32)
    return listed + end + _END.pack(b"PK\5\6", 0, 0, count, count, len(listed), short, 0)


__all__ = ["MOST_MEMBERS", "MalformedError", "Member", "Writer", "read", "read_members"]
