"""The file: a zip without compression whose members are aligned, so that they can be mapped.

The same members give the same bytes: they lie in the order in which they are added, with one time
stamp, and nothing of the machine. A file is written beside its name and renamed when it is whole.
Reading trusts nothing: see `Archive.open`. Only weights are mapped; all else is copied out of the
file before it is looked at, so that nobody changes what was checked, and a file that is cut short
meanwhile gives a diagnostic.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import struct
import zipfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from fuseline import errors
from fuseline.artifact.directory import PADDING, File, OddError, is_plain, members

ALIGNMENT = 64
"""Of members in the file, in bytes; `PAGE` for what is mapped as a whole."""

PAGE = 4096

_DATE = (1980, 1, 1, 0, 0, 0)
_LOCAL = 30
"""Bytes of a local header without name and extra fields."""


@dataclass(frozen=True)
class Member:
    """What the manifest says of a member.

    Attributes:
        sha256: of its bytes, in hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int


def check_place(path: Path) -> None:
    """Whether a file can be written here, as far as that can be told beforehand.

    Raises:
        ArtifactError: FL1106, where it cannot.

    """
    target = Path(os.path.realpath(path))
    found = ""
    if not target.parent.is_dir():
        found = f"no directory {path.parent if target.name == path.name else target.parent}"
    elif target.exists() and not target.is_file():
        found = "it is no plain file"
    else:
        try:
            with TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            found = f"nothing can be written in {target.parent} ({error.strerror})"
    if found:
        raise errors.ARTIFACT_UNWRITABLE.error(str(path), found=found)


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO, None, None]:
    """A file beside a path, which takes its place when the block has ended well; else it is gone.

    Its ``name`` is its path until then.

    Raises:
        ArtifactError: FL1106, where it cannot be written.

    """
    target = Path(os.path.realpath(path))  # a link stays one
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "it is no plain file")
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        found = error.strerror or str(error)
        raise errors.ARTIFACT_UNWRITABLE.error(str(path), found=found) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def beside(path: Path, write: Callable[[BinaryIO], object]) -> Generator[None, None, None]:
    """A file that one which the block writes reads from: where that fails, it is not left behind.

    Its name says what it holds. So one that is there already belongs to an earlier file, and stays.

    Raises:
        ArtifactError: FL1106, where it cannot be written.

    """
    of_another = path.exists()
    with replacing(path) as file:
        write(file)
    try:
        yield
    except BaseException:
        if not of_another:
            path.unlink(missing_ok=True)
        raise


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

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the file; after an error leave it as it is: it will not be one."""
        if kind is None:
            self.end()
        else:
            self._zip.fp = None


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
    return struct.pack("<HH", PADDING, missing - 4) + bytes(missing - 4) if missing else b""


class Archive:
    """An archive that is open; `checked` gives the bytes of a member."""

    def __init__(self, path: Path, file: File, places: dict[str, tuple[int, int]]) -> None:
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
            return cls(path, file, members(file))

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

    def checked(self, name: str, member: Member, most: int | None = None) -> bytes:
        """A copy of the bytes of a member that the manifest knows.

        Raises:
            ArtifactError: FL1103, where they are others; FL1102, where they are more than ``most``,
                in which case they are not read.

        """
        if most is not None and self.size(name) > most:
            raise damaged(self.path, f"{name!r} of {self.size(name)} bytes, more than {most}")
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
        if not is_plain(name) or "/" in name:
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


def _opened(path: Path) -> File:
    try:
        return File(path)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        found = os.strerror(number) if number else str(error)
        raise errors.ARTIFACT_UNREADABLE.error(str(path), found=found) from error


@contextmanager
def _told(path: Path) -> Generator[None, None, None]:
    """What is wrong with a file as a diagnostic."""
    try:
        yield
    except (OddError, struct.error) as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        found = os.strerror(error.errno) if error.errno else str(error)
        raise errors.ARTIFACT_UNREADABLE.error(str(path), found=found) from error


def damaged(path: Path, found: str) -> errors.FuselineError:
    """FL1102: the file is not what it should be."""
    return errors.ARTIFACT_DAMAGED.error(str(path), found=found)


__all__ = [
    "ALIGNMENT",
    "PAGE",
    "Archive",
    "Beside",
    "Member",
    "Writer",
    "beside",
    "check_place",
    "copied",
    "damaged",
    "replacing",
]
