"""A file of one process: whole at any time, and never another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseline.debug.page.file import GENERATOR, OwnFile
from fuseline.errors import FuselineWarning

# Two objects are two processes: each opens the file for itself, and a lock is of what is opened.


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    file = OwnFile(path)
    file.write("one")
    with path.open() as reader:
        file.write("another")
        assert reader.read() == "one", "who reads it has all of what was there"
    assert path.read_text() == "another"
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_earlier_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    OwnFile(path).write("new")
    assert path.read_text() == "new"


def test_two_processes_get_a_file_each(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    one, other, third = (OwnFile(path) for _ in range(3))
    one.write("one")
    with pytest.warns(FuselineWarning, match=f"FL0108 .* {path}.* {tmp_path}/report-1.html"):
        other.write("other")
    with pytest.warns(FuselineWarning, match="report-2.html"):
        third.write("third")
    one.write("one again")
    other.write("other again")
    assert one.path == path
    assert other.path == tmp_path / "report-1.html"
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {
        "report.html": "one again",
        "report-1.html": "other again",
        "report-2.html": "third",
    }


def test_beside_its_place_only_pages_are_replaced(tmp_path: Path) -> None:
    """The number that somebody else's file has is left out."""
    path, kept, page = (tmp_path / f"report{n}.html" for n in ("", "-1", "-2"))
    holder = OwnFile(path)
    holder.write("one")
    kept.write_text("not a page")
    page.write_text(f"<!doctype html>{GENERATOR}")
    other = OwnFile(path)
    with pytest.warns(FuselineWarning, match="FL0108"):
        other.write("two")
    assert [f.read_text() for f in (path, kept, page)] == ["one", "not a page", "two"]
    holder.close()


def test_a_file_that_was_taken_away_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    file = OwnFile(path)
    file.write("one")
    path.unlink()
    file.write("two")
    assert path.read_text() == "two"


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "report.html"
    file = OwnFile(path)
    file.write("one")
    with pytest.raises(UnicodeEncodeError):
        file.write("\ud800")
    assert path.read_text() == "one"
    assert list(folder.iterdir()) == [path]
    path.unlink()
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        file.write("two")


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "report.html")
    OwnFile(tmp_path / "link.html").write("text")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "report.html").read_text() == "text"
