"""The zip has one spelling: other programs read it, and its reader takes nothing else."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest

from fuseline.runtime.cache import plain_zip
from fuseline.runtime.cache.plain_zip import MalformedError, Member, Writer, read, read_members

MEMBERS = {"a/b": b"x" * 3_000_001, "a/c": b"", "z": bytes(range(256))}


def written(members: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    writer = Writer(file)
    for name, content in members.items():
        writer.add(name, len(content), iter([content[:100], content[100:]]))
    writer.close()
    return file


def contents(file: io.BytesIO) -> dict[str, bytes]:
    return {member.name: b"".join(read(file, member)) for member in read_members(file)}


@pytest.mark.parametrize("members", [MEMBERS, {}, {"only": b"1"}], ids=len)
def test_what_is_written_is_read_here_and_by_others(members: dict[str, bytes]) -> None:
    file = written(members)
    assert contents(file) == members
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == members
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.date_time, info.extra) == ((1980, 1, 1, 0, 0, 0), b"")
            assert info.external_attr >> 16 == 0o100600


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs the program unzip")
def test_unzip_finds_nothing_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(written(MEMBERS).getvalue())
    done = subprocess.run(["unzip", "-tq", str(tmp_path / "x.zip")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_cut_leaves_no_trace() -> None:
    file = io.BytesIO()
    writer = Writer(file)
    writer.add("a", 3, iter([b"one"]))
    before = writer.count
    writer.add("b", 3, iter([b"two"]))
    with pytest.raises(ValueError, match="'c' has 5 bytes, not 3"):
        writer.add("c", 3, iter([b"three"]))
    writer.cut(before)
    writer.add("d", 4, iter([b"four"]))
    writer.close()
    assert file.getvalue() == written({"a": b"one", "d": b"four"}).getvalue()


@pytest.mark.parametrize("name", ["a", "", "é", "b\n", "b" * 301])
def test_names_are_plain_and_in_order(name: str) -> None:
    writer = Writer(io.BytesIO())
    writer.add("a", 0, iter([]))
    with pytest.raises(ValueError, match="does not come after|is no name"):
        writer.add(name, 0, iter([]))


def test_more_members_than_16_bits_count() -> None:
    members = {f"{number:05}": b"%d" % number for number in range(65_600)}
    file = written(members)
    assert contents(file) == members
    with zipfile.ZipFile(file) as archive:
        assert len(archive.namelist()) == len(members)
        assert archive.read("65599") == b"65599"


def test_sizes_and_places_of_more_than_32_bits(tmp_path: Path) -> None:
    """In a file with holes, so that only the headers take room."""
    first = Member("a", 5 << 30, 0, 0)
    second = Member("b", 4, zlib.crc32(bytes(4)), plain_zip.after(first))
    edge = Member("c", 0xFFFFFFFF, 0, plain_zip.after(second))
    members = [first, second, edge]
    with (tmp_path / "large.zip").open("w+b") as file:
        for member in members:
            file.seek(member.start)
            file.write(plain_zip.local_header(member))
        file.seek(plain_zip.after(edge))
        file.write(plain_zip.directory(members))
        file.flush()
        assert read_members(file) == members
        with zipfile.ZipFile(file) as archive:
            assert [i.file_size for i in archive.infolist()] == [m.size for m in members]
            assert [i.header_offset for i in archive.infolist()] == [m.start for m in members]
            assert archive.read("b") == bytes(4)


def of_zipfile(**changes: object) -> bytes:
    """A zip with one member, as the standard library writes it."""
    file = io.BytesIO()
    info = zipfile.ZipInfo("a")
    info.create_system, info.external_attr = 3, 0o100600 << 16
    for name, value in changes.items():
        setattr(info, name, value)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, b"text")
    return file.getvalue()


def test_the_standard_library_spells_a_plain_zip_alike() -> None:
    assert of_zipfile() == written({"a": b"text"}).getvalue()


FOREIGN: dict[str, bytes] = {
    "compressed": of_zipfile(compress_type=zipfile.ZIP_DEFLATED),
    "later": of_zipfile(date_time=(2020, 2, 2, 2, 2, 2)),
    "with a comment": of_zipfile(comment=b"c"),
    "with a field": of_zipfile(extra=b"\1\2\0\0"),
    "a link": of_zipfile(external_attr=0o120777 << 16),
    "a folder": of_zipfile(external_attr=0o040700 << 16 | 0x10),
    "from Windows": of_zipfile(create_system=0),
    "behind something": b"#!/bin/sh\n" + of_zipfile(),
    "before something": of_zipfile() + b"\n",
    "with a comment at its end": of_zipfile()[:-2] + b"\1\0c",
    "a name of other letters": of_zipfile(filename="é"),
    "a name with a line": of_zipfile(filename="a\nb"),
    "twice": of_zipfile()[:-22] + of_zipfile(),
    "cut short": of_zipfile()[:-1],
    "empty": b"",
    "its end alone": of_zipfile()[-22:],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_other_spelling_is_taken(what: str) -> None:
    with pytest.raises(MalformedError):
        contents(io.BytesIO(FOREIGN[what]))


def test_every_single_byte_counts() -> None:
    """Whatever byte is changed, in headers or contents: the file is refused."""
    whole = written({"a": b"text", "b": b"more"}).getvalue()
    for at in range(len(whole)):
        for other in (whole[at] ^ 1, whole[at] ^ 0x80, 0xFF - whole[at]):
            with pytest.raises(MalformedError):
                contents(io.BytesIO(whole[:at] + bytes([other]) + whole[at + 1 :]))


def test_every_shorter_file_is_refused() -> None:
    whole = written({"a": b"text", "b": b"more"}).getvalue()
    for size in range(len(whole)):
        with pytest.raises(MalformedError):
            contents(io.BytesIO(whole[:size]))
