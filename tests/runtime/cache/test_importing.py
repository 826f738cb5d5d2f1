"""Taking over entries from a file: all of it, or, where anything is wrong, nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import fuseline
from fuseline.errors import CacheError
from fuseline.runtime.cache import Cache, canonical, location
from fuseline.runtime.cache.importing import Imported, import_from
from tests.runtime.cache.transfer_helpers import (
    CONTENTS,
    MUCH,
    Parts,
    exported,
    fill,
    parts_of,
    put,
    together,
    tree,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fuseline.__file__).parents[1])}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a cache that is gone."""
    fill(tmp_path / "elsewhere")
    made = exported(tmp_path / "elsewhere", tmp_path / "all.zip")
    shutil.rmtree(tmp_path / "elsewhere")
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def take(file: Path, root: Path, **given: Any) -> Imported:
    return import_from(file, Cache.open(root), most_bytes=MUCH, **given)


def counts(done: Imported) -> tuple[int, int]:
    return len(done.new), len(done.present)


def must_not_build(folder: Path) -> None:
    raise AssertionError(f"built in {folder}")


def test_what_was_imported_is_found(file: Path, root: Path) -> None:
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        told.append((done, total))

    done = take(file, root, report=report)
    assert counts(done) == (3, 0)
    assert sorted(entry.name for entry in done.new) == ["gemv", "norm", "norm"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    cache = Cache.open(root)
    assert cache.verify() == []
    for kind, factors, files in CONTENTS.values():
        entry = cache.get_or_build(kind, factors, must_not_build)
        assert {name: entry.file(name).read_bytes() for name in entry.files} == files
    modes = {path.stat().st_mode & 0o777 for path in (root, *root.rglob("*"))}
    assert modes == {0o700, 0o600}
    assert list((root / "v1" / "staging").iterdir()) == []


def test_out_and_in_and_out_again_gives_the_same_bytes(
    file: Path, root: Path, tmp_path: Path
) -> None:
    take(file, root)
    assert exported(root, tmp_path / "again.zip").read_bytes() == file.read_bytes()


def test_what_is_there_is_left_alone(file: Path, root: Path) -> None:
    own = put(root, *CONTENTS["norm"])
    os.utime(own.path, (1e9, 1e9))
    assert counts(take(file, root)) == (2, 1)
    assert own.path.stat().st_mtime == 1e9
    assert counts(take(file, root)) == (0, 3)


def test_what_a_base_holds_is_there(file: Path, root: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    put(base, *CONTENTS["norm"])
    before = tree(base)
    done = import_from(file, Cache.open(root, [base]), most_bytes=MUCH)
    assert counts(done) == (2, 1)
    assert tree(base) == before


def test_a_damaged_entry_is_replaced(file: Path, root: Path) -> None:
    own = put(root, *CONTENTS["norm"])
    own.file("kernel.cubin").write_bytes(b"evil")
    assert counts(take(file, root)) == (3, 0)
    assert Cache.open(root).verify() == []
    assert len(list((root / "v1" / "aside").iterdir())) == 1


def test_a_dry_run_checks_everything_and_writes_nothing(file: Path, root: Path) -> None:
    done = take(file, root, dry_run=True)
    assert counts(done) == (3, 0)
    assert not root.exists()
    put(root, *CONTENTS["norm"]).file("kernel.cubin").write_bytes(b"evil")
    before = tree(root)
    assert counts(take(file, root, dry_run=True)) == (3, 0)
    assert tree(root) == before
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"codecode", b"evilcode", 1))
    with pytest.raises(CacheError, match="FL0610"):
        take(file, root, dry_run=True)


def test_more_than_is_allowed_is_refused(file: Path, root: Path) -> None:
    with pytest.raises(CacheError, match=r"FL0612.*expected at most 100\. Hint: --max-size"):
        import_from(file, Cache.open(root), most_bytes=100)
    assert not root.exists()


def test_more_than_the_disk_has_room_for_is_refused(
    file: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly_full(path: Path) -> SimpleNamespace:
        assert path == root.parent, "the cache is not there yet"
        return SimpleNamespace(free=100)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(CacheError, match="FL0612.*which are free"):
        take(file, root)
    assert not root.exists()


def test_a_cache_that_cannot_be_written_is_said(
    file: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir(mode=0o700)
    monkeypatch.setattr(location, "is_read_only", lambda root: True)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(
        CacheError, match=f"FL0613.*in {root}: found a cache that cannot be written"
    ):
        take(file, root)
    assert counts(take(file, root, dry_run=True)) == (3, 0)


# ------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize("what", ["absent", "a folder", "a pipe", "empty", "text", "its beginning"])
def test_what_is_no_such_file_is_said(file: Path, root: Path, tmp_path: Path, what: str) -> None:
    path = tmp_path / "what"
    match what:
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "absent":
            pass
        case _:
            content = {"empty": b"", "text": b"hello\n" * 99}
            path.write_bytes(content.get(what, file.read_bytes()[:-1]))
    with pytest.raises(CacheError, match=f"FL0610.* in {path}: found "):
        take(path, root)
    assert not root.exists()


FOLDER = f"entries/kernel/{'a' * 64}"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "entries/../evil",
        "entries/kernel/../../../../evil",
        f"{FOLDER}/../evil",
        f"{FOLDER}/..",
        f"{FOLDER}/.",
        f"{FOLDER}/",
        f"{FOLDER}/a/b",
        f"{FOLDER}//b",
        f"{FOLDER}/a\\b",
        f"{FOLDER}/.hidden",
        f"{FOLDER}/-rf",
        f"{FOLDER}/{'n' * 129}",
        f"{FOLDER}",
        f"entries/Kernel/{'a' * 64}/x",
        f"entries/./{'a' * 64}/x",
        f"entries/{'k' * 33}/{'a' * 64}/x",
        f"entries/kernel/{'A' * 64}/x",
        f"entries/kernel/{'a' * 63}/x",
        "entries",
        "evil",
        "a/b/c/d",
    ],
)
def test_no_name_leads_elsewhere(file: Path, root: Path, tmp_path: Path, name: str) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_bytes(together([*parts_of(file), (name, b"evil")]))
    before = tree(tmp_path)
    with pytest.raises(CacheError, match="FL0610.*is no file of an entry"):
        take(bad, root)
    assert tree(tmp_path) == before


def replaced(parts: Parts, end: str, change: Callable[[bytes], bytes]) -> Parts:
    """The members with the content of the first changed whose name ends so."""
    name = next(name for name, _ in parts if name.endswith(end))
    return [(n, change(content) if n == name else content) for n, content in parts]


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: canonical({**json.loads(content), **changes}).encode()


def lie_about_a_digest(content: bytes) -> bytes:
    manifest = cast("dict[str, Any]", json.loads(content))
    record = next(iter(manifest["files"].values()))
    record["sha256"] = sha256(b"evil").hexdigest()
    return canonical(manifest).encode()


DEEP = b"[" * 100_000
SPOILT: dict[str, tuple[Callable[[Parts], Parts], str]] = {
    "no format": (lambda p: p[:-1], r"it has no format\.json"),
    "another format": (
        lambda p: replaced(p, "format.json", edited(format="tar")),
        "is that of something else",
    ),
    "no version": (
        lambda p: replaced(p, "format.json", edited(version="1")),
        r"format\.json has no version",
    ),
    "no JSON": (lambda p: replaced(p, "format.json", lambda _: DEEP), "is no JSON"),
    "no mapping": (lambda p: replaced(p, "format.json", lambda _: b"[]"), "is no mapping"),
    "other counts": (
        lambda p: replaced(p, "format.json", edited(entries=9)),
        "is not that of 3 entries",
    ),
    "another spelling": (
        lambda p: replaced(p, "format.json", lambda c: c + b" "),
        "is not that of 3 entries",
    ),
    "a file fewer": (
        lambda p: [part for part in p if not part[0].endswith("k.cpp")],
        "the manifest of kernel [0-9a-f]{12} does not list its files",
    ),
    "a file more": (
        lambda p: [*p, (p[0][0].rpartition("/")[0] + "/more", b"")],
        "does not list its files",
    ),
    "no key": (
        lambda p: [part for part in p if part[0] != p[0][0].rpartition("/")[0] + "/key.json"],
        r"has no key\.json",
    ),
    "no manifest": (
        lambda p: [part for part in p if part[0] != p[0][0].rpartition("/")[0] + "/manifest.json"],
        r"has no manifest\.json",
    ),
    "other factors": (
        lambda p: replaced(p, "key.json", edited(factors={"name": "evil"})),
        "do not give its key",
    ),
    "a path for a factor": (
        lambda p: replaced(p, "key.json", edited(factors={"name": "/etc"})),
        "makes no sense: the factor name of a .* entry is a path",
    ),
    "no factors": (lambda p: replaced(p, "key.json", lambda _: b'{"schema":1}'), "makes no sense"),
    "deep factors": (lambda p: replaced(p, "key.json", lambda _: DEEP), "is no JSON"),
    "factors nested deep": (
        lambda p: replaced(
            p, "key.json", lambda _: b'{"factors":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"
        ),
        "no sense|no JSON|do not give its key",
    ),
    "a key spelled otherwise": (
        lambda p: replaced(p, "key.json", lambda c: c.replace(b",", b", ", 1)),
        "do not give its key",
    ),
    "another digest": (
        lambda p: replaced(p, "manifest.json", lie_about_a_digest),
        "does not have its digest",
    ),
    "other contents": (
        lambda p: replaced(p, "kernel.cubin", lambda c: c[::-1]),
        "kernel.cubin of cubin [0-9a-f]{12} does not have its digest",
    ),
    "contents of another size": (
        lambda p: replaced(p, "kernel.cubin", lambda c: c + b"x"),
        "does not list its files",
    ),
    "files that are no mapping": (
        lambda p: replaced(p, "manifest.json", edited(files=[1])),
        "makes no sense",
    ),
    "sizes that are no numbers": (
        lambda p: replaced(
            p, "manifest.json", lambda c: c.replace(b'"size":', b'"size":1e999,"was":', 1)
        ),
        "makes no sense",
    ),
    "a description without end": (
        lambda p: replaced(p, "manifest.json", lambda _: bytes((4 << 20) + 1)),
        "has more than 4194304 bytes",
    ),
    "too many files": (
        lambda p: [*p, *((f"{FOLDER}/{number}", b"") for number in range(1001))],
        "has more than 1000 files",
    ),
    "one key twice": (
        lambda p: [*p, *((n.replace("/cubin/", "/other/"), c) for n, c in p)],
        "is there twice",
    ),
}


def balanced(parts: Parts) -> Parts:
    """With the counts that fit, so that nothing but what was spoilt is wrong."""
    names = {tuple(name.split("/")[:3]) for name, _ in parts if name.startswith("entries/")}
    described = ("key.json", "manifest.json", "format.json")
    total = sum(len(content) for name, content in parts if not name.endswith(described))
    return replaced(parts, "format.json", edited(entries=len(names), bytes=total))


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_file_changes_nothing(file: Path, root: Path, tmp_path: Path, what: str) -> None:
    spoil, said = SPOILT[what]
    bad = tmp_path / "bad.zip"
    parts = spoil(parts_of(file))
    about_format = "format" in said or "3 entries" in said or what in ("no JSON", "no mapping")
    bad.write_bytes(together(parts if about_format else balanced(parts)))
    own = put(root, "kernel", {"name": "own"}, {"x": b"own"})
    before = {name: c for name, c in tree(root).items() if c is not None}
    with pytest.raises(CacheError, match=f"FL0610.*{said}"):
        take(bad, root)
    assert {name: c for name, c in tree(root).items() if c is not None} == before
    assert list((root / "v1" / "staging").iterdir()) == []
    assert [entry.key for entry in Cache.open(root).entries()] == [own.key]


@pytest.mark.parametrize(
    ("end", "changes", "said"),
    [
        ("format.json", {"schema": 2}, "found version 1, entries of schema 2, expected version 1"),
        ("format.json", {"version": 7}, "found version 7, .* expected version 1, entries of sch"),
        ("key.json", {"schema": 0}, "found cubin [0-9a-f]{12} of schema 0, expected schema 1"),
        ("manifest.json", {"schema": 3}, "found cubin [0-9a-f]{12} of schema 3, expected schema"),
    ],
)
def test_another_version_is_refused_with_what_was_found(
    file: Path, root: Path, end: str, changes: dict[str, int], said: str
) -> None:
    file.write_bytes(together(replaced(parts_of(file), end, edited(**changes))))
    with pytest.raises(CacheError, match=f"FL0611.*{said}"):
        take(file, root)
    assert not root.exists()


def test_names_do_not_reach_the_terminal_as_they_are(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "one", "kernel", {"name": "\x1b[2Jevil\n"}, {"x": b""})
    (entry,) = take(exported(tmp_path / "one", tmp_path / "all.zip"), root).new
    assert entry.name == r"\x1b[2Jevil\n"
    assert [entry.name for entry in Cache.open(root).entries()] == [r"\x1b[2Jevil\n"]


def test_a_file_that_is_a_link_in_the_cache_is_not_followed(
    file: Path, root: Path, tmp_path: Path
) -> None:
    """An entry that is a link elsewhere is damaged: it is set aside, and what it names stays."""
    kind, factors, files = CONTENTS["norm"]
    own = put(root, kind, factors, files)
    shutil.move(own.path, tmp_path / "precious")
    own.path.symlink_to(tmp_path / "precious")
    before = tree(tmp_path / "precious")
    assert counts(take(file, root)) == (3, 0)
    assert not own.path.is_symlink()
    assert tree(tmp_path / "precious") == before


# ------------------------------------------------------------------------------ killed imports

KILLED = """
import sys, time
from pathlib import Path
from fuseline.runtime.cache import Cache
from fuseline.runtime.cache.importing import import_from
from fuseline.runtime.cache.layer import Layer

when, publish, published = sys.argv[3], Layer.publish, []

def wait():
    print("in the middle", flush=True)
    time.sleep(60)

def report(done, total):
    if when == "copying" and done == 2:
        wait()

def slow(self, *given):
    if when == "publishing" and len(published) == 2:
        wait()
    published.append(given)
    return publish(self, *given)

Layer.publish = slow
import_from(Path(sys.argv[1]), Cache.open(Path(sys.argv[2])), most_bytes=1 << 30, report=report)
"""


@pytest.mark.parametrize(("when", "there"), [("copying", 0), ("publishing", 2)])
def test_an_import_that_is_killed_leaves_whole_entries(
    file: Path, root: Path, when: str, there: int
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(file), str(root), when],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in the middle\n"
        child.send_signal(signal.SIGKILL)
    cache = Cache.open(root)
    assert cache.verify() == []
    assert len(list(cache.entries())) == there
    (left,) = (root / "v1" / "staging").iterdir()
    os.utime(left, (1e9, 1e9))
    assert counts(take(file, root)) == (3 - there, there)
    assert not left.exists()
    assert Cache.open(root).verify() == []


def test_two_imports_at_once_do_not_disturb_each_other(file: Path, root: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, str(file), str(root), "never"], env=ENVIRONMENT
        )
        for _ in range(3)
    ]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert Cache.open(root).verify() == []
    assert counts(take(file, root)) == (0, 3)
