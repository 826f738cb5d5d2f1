"""Archives as nobody should write them: each gives a diagnostic that says what is wrong."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseline.artifact.archive import Archive, Beside, Member, Writer
from fuseline.errors import ArtifactError

MEMBERS = {"a.txt": b"first", "b/c.bin": bytes(range(200)), "d": b""}


def written(members: dict[str, bytes] = MEMBERS) -> bytes:
    out = io.BytesIO()
    writer = Writer(out)
    for name, data in members.items():
        writer.add_bytes(name, data)
    writer.end()
    return out.getvalue()


def opened(tmp: Path, data: bytes) -> Archive:
    path = tmp / "x.fuse"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return Archive.open(path)


def test_members_are_read_back(tmp_path: Path) -> None:
    archive = opened(tmp_path, written())
    assert {name: archive.read(name) for name in archive.names} == MEMBERS
    assert bytes(archive.data("b/c.bin")) == MEMBERS["b/c.bin"]
    assert archive.read("b/c.bin", 10, 5) == MEMBERS["b/c.bin"][10:15]
    assert b"".join(archive.parts("b/c.bin")) == MEMBERS["b/c.bin"]
    with pytest.raises(ArtifactError, match=r"FL1102.*'b/c.bin' of 200 bytes, not 201"):
        archive.read("b/c.bin", 190, 11)
    with pytest.raises(ArtifactError, match=r"FL1102.*no member 'e'"):
        archive.read("e")


def test_zip_tools_read_it() -> None:
    with zipfile.ZipFile(io.BytesIO(written())) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == MEMBERS


def large(monkeypatch: pytest.MonkeyPatch, *, beyond: bool) -> bytes:
    """An archive as of more than 2 GB; with ``beyond``, as of more than 4 GB and 65,535 members."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    data = written()
    assert b"PK\6\6" in data
    if not beyond:
        return data
    out = bytearray(data)
    struct.pack_into("<HHLL", out, data.index(b"PK\5\6") + 8, *(0xFFFF,) * 2, *(0xFFFF_FFFF,) * 2)
    return bytes(out)


@pytest.mark.parametrize("beyond", [False, True])
def test_sizes_and_counts_beyond_the_plain_format(
    beyond: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between 2 and 4 GB both ends of a zip have the numbers, above it only one has."""
    data = large(monkeypatch, beyond=beyond)
    if beyond:
        with pytest.raises(ArtifactError, match="two ends of a zip file that say another"):
            opened(tmp_path, data)  # the larger numbers would fit into the smaller end
        return
    archive = opened(tmp_path, data)
    assert {name: archive.read(name) for name in archive.names} == MEMBERS
    for field, form in ((24, "<Q"), (32, "<Q"), (40, "<Q"), (48, "<Q")):
        at = data.index(b"PK\6\6") + field
        for value in (0, 1 << 40, (1 << 64) - 1):
            with pytest.raises(ArtifactError, match="FL1102"):
                opened(tmp_path, patched(lambda _, at=at: at, form, value)(data))


@pytest.mark.slow
def test_a_file_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Its sizes and places do not fit into the fields of a plain zip."""
    path = tmp_path / "x.fuse"
    size = (4 << 30) + 12345
    with path.open("w+b") as file:
        writer = Writer(file)
        for name, data in MEMBERS.items():
            writer.add_bytes(name, data)
        writer.add("large", size, _zeros(size), align=4096)
        writer.add_bytes("last", b"behind it")
        writer.end()
    archive = Archive.open(path)
    assert archive.size("large") == size
    assert archive.read("last") == b"behind it"
    assert archive.read("large", size - 3, 3) == b"\0\0\0"


def _zeros(size: int) -> Iterator[bytes]:
    part = bytes(16 << 20)
    for at in range(0, size, len(part)):
        yield part[: min(len(part), size - at)]


def patched(at: Callable[[bytes], int], form: str, value: int) -> Callable[[bytes], bytes]:
    """The archive with another number somewhere."""

    def change(data: bytes) -> bytes:
        out = bytearray(data)
        struct.pack_into(form, out, at(data), value)
        return bytes(out)

    return change


def central(field: int, entry: int = 0) -> Callable[[bytes], int]:
    def at(data: bytes) -> int:
        start = data.index(b"PK\1\2")
        for _ in range(entry):
            start = data.index(b"PK\1\2", start + 4)
        return start + field

    return at


def end(field: int) -> Callable[[bytes], int]:
    return lambda data: data.index(b"PK\5\6") + field


def renamed(name: bytes) -> Callable[[bytes], bytes]:
    """The first member's name another of the same length, in both headers."""
    return lambda data: data.replace(b"a.txt", name)


def shifted(data: bytes) -> bytes:
    """Some bytes in front of the directory that belong to no member."""
    start = data.index(b"PK\1\2")
    out = bytearray(data[:start] + b"hidden" + data[start:])
    struct.pack_into("<L", out, out.index(b"PK\5\6") + 16, start + 6)
    return bytes(out)


def padded(data: bytes) -> bytes:
    """Something in the padding of the first member, in both headers."""
    padding = struct.pack("<H", 0xD935)
    one = data.index(padding) + 4
    other = data.index(padding, data.index(b"PK\1\2")) + 4
    out = bytearray(data)
    out[one] = out[other] = 1
    return bytes(out)


CASES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no zip": (lambda data: b"MZ" * 500, "no end of a zip file"),
    "cut": (lambda data: data[:-1], "no end of a zip file"),
    "behind its end": (lambda data: data + b"\0", "no end of a zip file"),
    "its end alone": (lambda data: data[-22:], "not where its end says"),
    "a comment": (patched(end(20), "<H", 1), "with a comment"),
    "two disks": (patched(end(4), "<H", 1), "in several parts"),
    "too many": (lambda d: patched(end(8), "<L", 0xFFFE_FFFE)(d), "a directory of 65534 members"),
    "too few": (lambda d: patched(end(8), "<L", 0x0002_0002)(d), "members that overlap"),
    "far": (patched(end(16), "<L", 0xFFFF_FFF0), "not where its end says"),
    "large": (patched(end(16), "<L", 0xFFFF_FFFF), "not where its end says"),
    "packed": (patched(central(10), "<H", 8), "compressed, encrypted"),
    "encrypted": (patched(central(8), "<H", 1), "compressed, encrypted"),
    "of two sizes": (patched(central(20), "<L", 4), "of two sizes"),
    "beyond": (patched(central(42), "<L", 0x7FFF_FFFF), "begins beyond the file"),
    "another header": (patched(central(42, 1), "<L", 0), "another header than its entry"),
    "another digest of the zip": (patched(central(16), "<L", 1), "another header than its entry"),
    "upwards": (renamed(b"../xy"), r"a name '\.\./xy'"),
    "absolute": (renamed(b"/etcx"), "a name '/etcx'"),
    "a place here": (renamed(b"./x.y"), r"a name '\./x\.y'"),
    "twice a slash": (renamed(b"a//xx"), "a name 'a//xx'"),
    "Windows": (renamed(b"a\\xxx"), "a name"),
    "an end": (renamed(b"a\0xxx"), "a name"),
    "an escape": (renamed(b"a\x1b[2J"), "a name"),
    "no UTF-8": (renamed(b"\xff\xfexyz"), "a name"),
    "hidden": (shifted, "bytes that belong to no member"),
    "something in its padding": (padded, "an extra field that is not ours"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_archive_is_told(case: str, tmp_path: Path) -> None:
    change, said = CASES[case]
    data = written()
    assert change(data) != data
    with pytest.raises(ArtifactError, match=f"FL1102.*{said}"):
        opened(tmp_path, change(data))


def test_two_members_of_one_name(tmp_path: Path) -> None:
    data = written({"one": b"1", "two": b"2"}).replace(b"two", b"one")
    with pytest.raises(ArtifactError, match="FL1102.*two members 'one'"):
        opened(tmp_path, data)


def test_members_on_the_same_bytes(tmp_path: Path) -> None:
    """The second entry is a copy of the first, under its name: a bomb takes few bytes so."""
    data = bytearray(written({"a": b"1" * 100, "b": b"2" * 100}))
    one, other = data.index(b"PK\1\2"), data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    data[other : other + 46] = data[one : one + 46]
    with pytest.raises(ArtifactError, match="FL1102"):
        opened(tmp_path, bytes(data))


def test_every_cut_is_told(tmp_path: Path) -> None:
    data = written()
    for size in range(len(data)):
        with pytest.raises(ArtifactError, match=r"FL1102"):
            opened(tmp_path, data[:size])


def test_a_file_that_is_cut_after_it_was_opened(tmp_path: Path) -> None:
    """Nothing is mapped, so nothing reads beyond the end of the file."""
    archive = opened(tmp_path, written())
    os.truncate(tmp_path / "x.fuse", 20)
    known = Member(hashlib.sha256(MEMBERS["b/c.bin"]).hexdigest(), 200)
    for use in (
        lambda: archive.read("b/c.bin"),
        lambda: archive.checked("b/c.bin", known),
        lambda: archive.verify("b/c.bin", known),
        lambda: archive.data("b/c.bin"),
    ):
        with pytest.raises(ArtifactError, match="FL1102.*cut short while it was read"):
            use()


def test_what_is_checked_is_what_is_used(tmp_path: Path) -> None:
    """A file that is written to after a digest was checked changes nothing of what was read."""
    archive = opened(tmp_path, written())
    known = Member(hashlib.sha256(MEMBERS["b/c.bin"]).hexdigest(), 200)
    data = archive.checked("b/c.bin", known)
    (tmp_path / "x.fuse").write_bytes(bytes(len(written())))
    assert data == MEMBERS["b/c.bin"]
    with pytest.raises(ArtifactError, match="FL1103"):
        archive.checked("b/c.bin", known)


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing", "empty", "device"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    """To open a pipe would be to wait for somebody who writes."""
    path = tmp_path / "x.fuse"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "device":
        path = Path(os.devnull)
    with pytest.raises(ArtifactError, match="FL1101|FL1102.*an empty file"):
        Archive.open(path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/etc/passwd", "a\0b", "a\\b"])
def test_no_file_beside_that_lies_elsewhere(name: str, tmp_path: Path) -> None:
    archive = opened(tmp_path, written())
    with pytest.raises(ArtifactError, match="FL1102.*a file beside it"):
        Beside(archive, name, Member("0" * 64, 1))


def test_a_pipe_beside(tmp_path: Path) -> None:
    archive = opened(tmp_path, written())
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="FL1101.*it is no file"):
        Beside(archive, "w.safetensors", Member("0" * 64, 1))


def test_a_file_beside_of_another_size(tmp_path: Path) -> None:
    archive = opened(tmp_path, written())
    (tmp_path / "w.safetensors").write_bytes(b"12345")
    with pytest.raises(ArtifactError, match="FL1102.*5 bytes in the place of 6"):
        Beside(archive, "w.safetensors", Member("0" * 64, 6))
    beside = Beside(archive, "w.safetensors", Member(hashlib.sha256(b"12345").hexdigest(), 5))
    beside.verify()
    assert bytes(beside.data()) == b"12345"
