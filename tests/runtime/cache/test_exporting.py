"""Entries in one file: which ones, in the same bytes, and never half of it."""

from __future__ import annotations

import errno
import getpass
import json
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import fuseline
from fuseline.errors import CacheError
from fuseline.runtime.cache import Cache, Json, key_of
from fuseline.runtime.cache.exporting import export_to
from fuseline.runtime.cache.selection import Selection
from tests.runtime.cache.transfer_helpers import CONTENTS, exported, fill, parts_of, put

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fuseline.__file__).parents[1])}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_file_holds_all_files_of_the_entries(root: Path, tmp_path: Path) -> None:
    entries = fill(root)
    parts = dict(parts_of(exported(root, tmp_path / "all.zip")))
    for name, (kind, factors, files) in CONTENTS.items():
        folder = f"entries/{kind}/{key_of(kind, factors)}"
        for file in (*files, "key.json", "manifest.json"):
            assert parts.pop(f"{folder}/{file}") == (entries[name].path / file).read_bytes()
    assert json.loads(parts.pop("format.json")) == {
        "format": "fuseline-cache",
        "version": 1,
        "schema": 1,
        "entries": 3,
        "bytes": sum(entry.size for entry in entries.values()),
    }
    assert parts == {}


def test_the_same_entries_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """Wherever and whenever, in whatever order, and whoever could read the files."""
    fill(root)
    for content in reversed(list(CONTENTS.values())):
        put(tmp_path / "other", *content)
    for path in (tmp_path / "other").rglob("*.o"):
        path.chmod(0o644)
        os.utime(path, (1e9, 1e9))
    one = exported(root, tmp_path / "one.zip").read_bytes()
    assert one == exported(tmp_path / "other", tmp_path / "two.zip").read_bytes()
    for word in (str(root), platform.node(), str(Path.home()), getpass.getuser() + "@"):
        assert word.encode() not in one


def test_members_are_sorted_whatever_the_kinds(root: Path, tmp_path: Path) -> None:
    for kind in ("a", "a-b", "ab", "a_b"):
        put(root, kind, {}, {"x": b""})
    names = [name for name, _ in parts_of(exported(root, tmp_path / "all.zip"))]
    assert names == sorted(names)
    assert names[-1] == "format.json"


@pytest.mark.parametrize("damage", ["written to", "cut short", "longer", "not to be read"])
def test_a_damaged_entry_is_left_out_and_reported(
    root: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found while it is copied: not a byte of it stays in the file."""
    fill(tmp_path / "whole")
    torn = put(root, "cubin", {"name": "torn"}, {"a": b"first", "kernel.cubin": b"code" * 9})
    fill(root)
    meant = list(Cache.open(root).entries())
    file = torn.file("kernel.cubin")
    contents = {"written to": b"evil" * 9, "cut short": b"code", "longer": b"code" * 10}
    file.write_bytes(contents.get(damage, b"code" * 9))
    if damage == "not to be read":
        opened: Any = Path.open

        def refuse(self: Path, *given: Any, **named: Any) -> Any:
            if self == file:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return opened(self, *given, **named)

        monkeypatch.setattr(Path, "open", refuse)
    done = export_to(tmp_path / "all.zip", meant)
    (told,) = done.damaged
    assert (told.code, told.where) == ("FL0606", str(torn.path))
    assert told.hint is not None
    assert "left out" in told.hint
    assert len(done.entries) == 3
    whole = exported(tmp_path / "whole", tmp_path / "whole.zip")
    assert (tmp_path / "all.zip").read_bytes() == whole.read_bytes()


def test_an_entry_that_is_pruned_meanwhile_is_left_out(root: Path, tmp_path: Path) -> None:
    fill(root)
    meant = list(Cache.open(root).entries())
    Cache.open(root).prune(max_bytes=0)
    done = export_to(tmp_path / "all.zip", meant)
    assert (done.entries, done.damaged, done.bytes) == ((), (), 0)
    assert [name for name, _ in parts_of(tmp_path / "all.zip")] == ["format.json"]


def test_an_older_file_stays_until_the_new_one_is_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root)
    target = tmp_path / "all.zip"
    target.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CacheError, match="FL0613.*No space left"):
            exported(root, target)
    assert target.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.zip", "cache"]
    exported(root, target)
    assert zipfile.is_zipfile(target)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize("place", ["absent/all.zip", "cache", "/"])
def test_a_place_that_cannot_be_written_is_said(root: Path, tmp_path: Path, place: str) -> None:
    fill(root)
    with pytest.raises(CacheError, match="FL0613"):
        exported(root, tmp_path / place)


def test_only_a_plain_file_is_replaced(root: Path, tmp_path: Path) -> None:
    """A device or a pipe stays what it is, and a link leads where it did."""
    fill(root)
    pipe, link, target = (tmp_path / name for name in ("pipe", "link", "target"))
    os.mkfifo(pipe)
    with pytest.raises(CacheError, match="FL0613.*pipe: found Is no plain file"):
        exported(root, pipe)
    assert pipe.is_fifo()
    target.write_text("before")
    link.symlink_to(target)
    exported(root, link)
    assert link.is_symlink()
    assert zipfile.is_zipfile(target)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cache", "link", "pipe", "target"}


KILLED = """
import sys, time
from pathlib import Path
from fuseline.runtime.cache import Cache
from fuseline.runtime.cache.exporting import export_to

def report(done, total):
    if done == 2:
        print("in the middle", flush=True)
        time.sleep(60)

export_to(Path(sys.argv[2]), Cache.open(Path(sys.argv[1])).entries(), report)
"""


def test_an_export_that_is_killed_leaves_no_half_file(root: Path, tmp_path: Path) -> None:
    fill(root)
    target = tmp_path / "all.zip"
    before = exported(root, target).read_bytes()
    put(root, "kernel", {"name": "more"}, {"x": b"y"})
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), str(target)],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in the middle\n"
        child.send_signal(signal.SIGKILL)
    assert target.read_bytes() == before


def named(root: Path, selection: Selection) -> list[str]:
    return sorted(entry.name for entry in selection.of(Cache.open(root).entries()))


def test_what_is_selected(root: Path) -> None:
    """By kind, target, name and age; each narrows what is meant."""
    fill(root)
    put(root, "model", {"name": "weights"}, {"w": b"1"})
    host: dict[str, Json] = {"compiler": "gcc", "cpu": ["-mavx2"], "name": "gemv"}
    native = put(root, "kernel", host, {"kernel.o": b"2"})
    common = put(root, "kernel", {**host, "cpu": [], "name": "runner"}, {"kernel.o": b"3"})
    for part, name in ((native, "piece of cpu"), (common, "piece of all")):
        put(root, "piece", {"name": name, "objects": [part.key]}, {"piece.so": b"4"})
    put(root, "piece", {"name": "piece of what is gone", "objects": ["0" * 64]}, {"piece.so": b""})
    old = put(root, "trace", {"name": "step", "target": "auto"}, {"x": b"5"})
    os.utime(old.path, (time.time() - 90, time.time() - 90))
    always = ["piece of all", "piece of what is gone", "runner", "step", "weights"]
    for_cpu = ["gemv", "gemv", "piece of cpu"]
    assert named(root, Selection()) == sorted([*for_cpu, *always, "norm", "norm"])
    assert named(root, Selection(targets=("sm_90",))) == sorted([*always, "norm"])
    assert named(root, Selection(targets=("cpu",))) == sorted([*always, *for_cpu])
    assert named(root, Selection(targets=("sm_90", "sm_80"))) == sorted([*always, "norm", "norm"])
    assert named(root, Selection(kinds=("cubin",))) == ["norm", "norm"]
    assert named(root, Selection(kinds=("cubin", "model"), targets=("sm_90",))) == [
        "norm",
        "weights",
    ]
    assert named(root, Selection(names=("piece *", "w?ights"))) == [
        "piece of all",
        "piece of cpu",
        "piece of what is gone",
        "weights",
    ]
    assert named(root, Selection(since=60, names=("s*",))) == []
    assert named(root, Selection(since=120, names=("s*",))) == ["step"]


def test_a_selection_is_written_as_it_is_asked_for() -> None:
    chosen = Selection(("cubin", "piece"), ("sm_90",), ("a*",), 60.0)
    assert str(chosen) == "--kind cubin --kind piece --target sm_90 --name a* --since 60s"
    assert str(Selection()) == ""
