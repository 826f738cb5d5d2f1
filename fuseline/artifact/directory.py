"""Where the members of an archive are: the directory of a zip, of which nothing is trusted."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import weakref
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path, PurePosixPath

MOST_MEMBERS = 100_000
MOST_DIRECTORY = 64 << 20
"""Members, and bytes of their names and headers, that a file may have."""

PADDING = 0xD935
"""The extra field that zip tools use to align members."""

_PART = 4 << 20
"""Bytes that are read at once where a digest is all that is wanted."""


class OddError(Exception):
    """What is wrong with a file."""


class File:
    """A regular file that is open for reading, and how long it was then."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
        # Without O_NONBLOCK, to open a pipe is to wait for somebody who writes.
        self.number = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        weakref.finalize(self, os.close, self.number)
        about = os.fstat(self.number)
        if not stat.S_ISREG(about.st_mode):
            raise OSError("it is no file")
        self.size = about.st_size

    def read(self, start: int, size: int) -> bytes:
        """So many bytes; an `OddError`, where the file has become shorter."""
        found: list[bytes] = []
        end = start + size
        while start < end:
            part = os.pread(self.number, end - start, start)
            if not part:
                raise OddError("a file that was cut short while it was read")
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
            raise OddError("a file that was cut short while it was read")
        return memoryview(mmap.mmap(self.number, self.size, access=mmap.ACCESS_COPY))


_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_ALL16, _ALL32 = 0xFFFF, 0xFFFFFFFF


def members(file: File) -> dict[str, tuple[int, int]]:
    """Where the data of each member begin, and how many bytes they are.

    Only what `Writer` writes is taken: one disk, no comment, no compression, no encryption, and no
    bytes between members, in which something could be that no digest knows.
    """
    count, start, size = _directory(file)
    if count > MOST_MEMBERS or size > MOST_DIRECTORY or count * _CENTRAL.size > size:
        raise OddError(f"a directory of {count} members in {size} bytes")
    data = file.read(start, size)
    places: dict[str, tuple[int, int]] = {}
    spans: list[tuple[int, int]] = [(start, start)]
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > size:
            raise OddError("a directory that ends in the middle")
        fields = _CENTRAL.unpack_from(data, at)
        sign, flags, method = fields[0], fields[3], fields[4]
        length, extra, comment = fields[10:13]
        at += _CENTRAL.size
        if sign != b"PK\1\2" or flags & ~0x800 or method or comment or fields[13]:
            raise OddError("a member that is compressed, encrypted, or in another file")
        if at + length + extra > size:
            raise OddError("a directory that ends in the middle")
        name = _name(data[at : at + length])
        packed, whole, place = _large(
            (fields[8], fields[9], fields[16]), data[at + length : at + length + extra]
        )
        at += length + extra
        if name in places:
            raise OddError(f"two members {name!r}")
        if packed != whole:
            raise OddError(f"{name!r} of two sizes")
        first = _data_of(file, name, place, (flags, method, *fields[5:8], whole))
        if first + whole > start:
            raise OddError(f"{name!r} that reaches beyond the file")
        places[name] = (first, whole)
        spans.append((place, first + whole))
    spans.sort()
    if at != size or any(one[1] > other[0] for one, other in pairwise(spans)):
        raise OddError("members that overlap")
    if spans[0][0] or any(one[1] != other[0] for one, other in pairwise(spans)):
        raise OddError("bytes that belong to no member")
    return places


def _directory(file: File) -> tuple[int, int, int]:
    """How many members there are, where their directory begins, and its bytes."""
    end = file.size - _END.size
    tail = file.read(end, _END.size) if end >= 0 else b""
    if tail[:4] != b"PK\5\6":
        raise OddError("no end of a zip file")
    _, disk, other, here, count, size, start, comment = _END.unpack(tail)
    if disk or other or comment or here != count:
        raise OddError("a zip file in several parts, or with a comment")
    at = end - _LOCATOR.size
    found = file.read(at, _LOCATOR.size) if at >= 0 else b""
    if found[:4] == b"PK\6\7":  # from 2 GB on, or 65,536 members
        small = count, size, start
        count, size, start, end = _large_directory(file, at, _LOCATOR.unpack(found)[2])
        limits = (_ALL16, _ALL32, _ALL32)
        if small != tuple(map(min, (count, size, start), limits)):
            raise OddError("two ends of a zip file that say another")
    if start + size != end:
        raise OddError("a directory that is not where its end says")
    return count, start, size


def _large_directory(file: File, end: int, place: int) -> tuple[int, int, int, int]:
    """Count, size, begin and end of the directory of a large file; ``end`` is of what tells it."""
    if place + _END64.size != end:
        raise OddError("no end of a large zip file")
    fields = _END64.unpack(file.read(place, _END64.size))
    if fields[0] != b"PK\6\6" or fields[6] != fields[7] or fields[4] or fields[5]:
        raise OddError("no end of a large zip file")
    return fields[7], fields[8], fields[9], place


def _large(values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Sizes and place of a member, those that do not fit into 32 bits from its extra field."""
    wanted = [i for i, value in enumerate(values) if value == _ALL32]
    found = list(values)
    while extra:
        if len(extra) < 4:
            raise OddError("an extra field that ends in the middle")
        kind, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if len(body) != size:
            raise OddError("an extra field that ends in the middle")
        if kind == 1 and wanted and size == 8 * len(wanted):
            for number, i in enumerate(wanted):
                (found[i],) = struct.unpack_from("<Q", body, 8 * number)
            wanted = []
        elif kind != PADDING or any(body):
            raise OddError("an extra field that is not ours")
    if wanted:
        raise OddError("a member of unknown size")
    return found[0], found[1], found[2]


def _data_of(file: File, name: str, place: int, entry: tuple[int, ...]) -> int:
    """Where the data of a member begin, whose local header lies somewhere and says the same."""
    if place + _HEADER.size > file.size:
        raise OddError(f"{name!r} that begins beyond the file")
    sign, _, *same, length, extra = _HEADER.unpack(file.read(place, _HEADER.size))
    first = place + _HEADER.size + length + extra
    if first > file.size:
        raise OddError(f"{name!r} that begins beyond the file")
    behind = file.read(place + _HEADER.size, length + extra)
    packed, whole, _ = _large((same[5], same[6], 0), behind[length:])
    own = (*same[:5], whole)
    if sign != b"PK\3\4" or behind[:length] != name.encode() or packed != whole or own != entry:
        raise OddError(f"{name!r} with another header than its entry")
    return first


def _name(raw: bytes) -> str:
    """The name of a member: relative, by forward slashes, and only one way to write it."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise OddError(f"a name {raw[:40]!r}") from None
    if not is_plain(name):
        raise OddError(f"a name {name[:80]!r}")
    return name


def is_plain(name: str) -> bool:
    """Whether a name is relative and in its one form, and of characters that can be shown."""
    path = PurePosixPath(name)
    if not name.isprintable() or "\\" in name or str(path) != name:
        return False
    return not path.is_absolute() and ".." not in path.parts and name != "."


__all__ = ["PADDING", "File", "OddError", "is_plain", "members"]
