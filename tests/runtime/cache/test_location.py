"""Where a cache may be, and what happens where it may not or cannot."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fuseline
from fuseline.errors import CacheError, FuselineWarning
from fuseline.runtime.cache import Cache, location
from fuseline.runtime.cache.seen import Seen


def build(folder: Path) -> None:
    (folder / "kernel.o").write_bytes(b"code" * 1000)


def test_a_named_directory_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match="FL0601"):
            Cache.open(root).get("kernel", {})


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_named_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(CacheError, match="FL0602"):
        Cache.open(tmp_path).get_or_build("kernel", {}, build)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to another user")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(CacheError, match="FL0602.*owner uid 12345"):
        Cache.open(tmp_path).get("kernel", {})


def test_an_insecure_base_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(CacheError, match="FL0602"):
        Cache.open(tmp_path / "cache", [base]).get("kernel", {})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("nothing", "No such file or directory"),
        ("empty", "no entries"),
        ("v0", "entries of v0, expected a directory with v1/entries"),
    ],
)
def test_a_base_with_nothing_to_read_is_said_once(tmp_path: Path, make: str, said: str) -> None:
    base = tmp_path / "base"
    if make != "nothing":
        base.mkdir()
    if make == "v0":
        (base / "v0" / "entries").mkdir(parents=True)
    with pytest.warns(FuselineWarning, match=f"FL0609 .* in {base}: found {said}"):
        entry = Cache.open(tmp_path / "cache", [base]).get_or_build("kernel", {}, build)
    assert entry.path.is_relative_to(tmp_path / "cache")
    Cache.open(tmp_path / "cache", [base]).get("kernel", {})  # a second warning would fail


def test_a_base_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "base").touch()
    with pytest.raises(CacheError, match="FL0601.*FUSELINE_CACHE_BASE"):
        Cache.open(tmp_path / "cache", [tmp_path / "base"]).get("kernel", {})


def test_a_base_may_lie_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never written: a wheel may bring one."""
    base = tmp_path / "package" / "base"
    Cache.open(base).get_or_build("kernel", {}, build)
    monkeypatch.setattr(location, "_PACKAGE", tmp_path / "package")
    found = Cache.open(tmp_path / "cache", [base]).get("kernel", {})
    assert found is not None
    assert found.path.is_relative_to(base)


def test_a_base_that_is_the_cache_itself_is_read_once(tmp_path: Path) -> None:
    Cache.open(tmp_path).get_or_build("kernel", {}, build)
    cache = Cache.open(tmp_path, [tmp_path])
    assert [layer.root for layer in cache.layers] == [tmp_path]
    assert cache.clear().entries == 1


def test_nothing_is_written_below_the_package() -> None:
    package = Path(fuseline.__file__).parent
    with pytest.raises(CacheError, match="FL0603"):
        Cache.open(package / "cache").get_or_build("kernel", {}, build)
    assert not (package / "cache").exists()


def test_the_default_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "user_cache", lambda: tmp_path / "user")
    entry = Cache.open().get_or_build("kernel", {}, build)
    assert entry.path.is_relative_to(tmp_path / "user")


def test_a_default_that_is_a_file_is_replaced_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").touch()
    monkeypatch.setattr(location, "user_cache", lambda: tmp_path / "user")
    with pytest.warns(FuselineWarning, match="FL0604.*FL0601"):
        entry = Cache.open().get_or_build("kernel", {"number": 0}, build)
    assert entry.path.stat().st_mode & 0o777 == 0o700
    Cache.open().get_or_build("kernel", {"number": 1}, build)  # a second warning would fail


def test_a_directory_that_cannot_be_made_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self.is_relative_to(tmp_path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        made(self, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    cache = Cache.open(tmp_path / "cache")
    with pytest.warns(FuselineWarning, match="FL0604.*Read-only file system"):
        entry = cache.get_or_build("kernel", {}, build)
    assert not entry.path.is_relative_to(tmp_path)
    assert cache.get_or_build("kernel", {}, build) == entry


def test_a_read_only_cache_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cache.open(tmp_path).get_or_build("kernel", {}, build)
    monkeypatch.setattr(location, "is_read_only", lambda root: True)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    cache = Cache.open(tmp_path)
    assert cache.get_or_build("kernel", {}, build).path.is_relative_to(tmp_path)
    with pytest.warns(FuselineWarning, match="FL0604.*read-only"):
        entry = cache.get_or_build("kernel", {"source": "new"}, build)
    assert not entry.path.is_relative_to(tmp_path)


def test_a_cache_that_fills_up_goes_on_elsewhere(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path)
    old = cache.get_or_build("kernel", {}, build)

    def full(folder: Path) -> None:
        if folder.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        build(folder)

    with pytest.warns(FuselineWarning, match="FL0604.*No space left"):
        entry = cache.get_or_build("kernel", {"source": "new"}, full)
    assert not entry.path.is_relative_to(tmp_path)
    assert cache.get("kernel", {}) == old  # still read
    assert {e.key for e in cache.entries()} >= {old.key, entry.key}


def test_no_place_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "temporary", lambda parent: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    with pytest.raises(CacheError, match="FL0605"):
        Cache.open(tmp_path).get_or_build("kernel", {}, full)


def test_other_errors_of_a_build_are_passed_on(tmp_path: Path) -> None:
    def missing(folder: Path) -> None:
        (folder / "no" / "such").read_bytes()

    with pytest.raises(FileNotFoundError):
        Cache.open(tmp_path).get_or_build("kernel", {}, missing)


FULL_DISK = """
import sys, warnings
from pathlib import Path
from fuseline.runtime.cache import Cache

root = Path(sys.argv[1])
cache = Cache.open(root)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    entries = [
        cache.get_or_build("k", {"i": i}, lambda f: (f / "x").write_bytes(bytes(60_000)) and None)
        for i in range(8)
    ]
inside = sum(entry.path.is_relative_to(root) for entry in entries)
assert 0 < inside < 8, inside
assert all(entry.file("x").stat().st_size == 60_000 for entry in entries)
assert [w.message.args[0].code for w in caught] == ["FL0604"], caught
assert cache.verify() == []
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """In a mount namespace of its own: a tmpfs of 256 KiB holds the cache."""
    mount = 'mount -t tmpfs -o size=256k,mode=700 none "$1"'
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    probe = subprocess.run([*namespace, mount, "sh", str(tmp_path)], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"cannot mount here: {probe.stderr.strip()}")
    script = f'{mount} && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*namespace, script, "sh", str(tmp_path), sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(fuseline.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr


def test_importing_and_opening_write_nothing(tmp_path: Path) -> None:
    code = (
        "import fuseline, fuseline.runtime.cache as c\n"
        "assert c.Cache.open().get('kernel', {}) is None\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    env = {
        **os.environ,
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(fuseline.__file__).parents[1]),
    }
    env.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=home)
    assert list(home.rglob("*")) == []


def test_the_temporary_cache_is_gone_when_the_process_ends(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "from fuseline.runtime.cache import Cache, location\n"
        f"location.user_cache = lambda: Path({str(tmp_path / 'file')!r})\n"
        "entry = Cache.open().get_or_build('k', {}, lambda f: (f / 'x').touch())\n"
        "print(entry.path)\n"
    )
    env = {
        **os.environ,
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(Path(fuseline.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "tmp")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_place_that_cannot_be_looked_at_is_replaced(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.warns(FuselineWarning, match="FL0604.*symbolic links"):
        entry = Cache.open(loop / "cache").get_or_build("kernel", {}, build)
    assert not entry.path.is_relative_to(tmp_path)


@pytest.mark.parametrize("times", [1, 99])
def test_a_cache_that_is_deleted_during_a_build(tmp_path: Path, times: int) -> None:
    """It is begun again, and if that goes on, elsewhere."""
    root, deleted = tmp_path / "cache", list[Path]()

    def build_in_what_is_deleted(folder: Path) -> None:
        if folder.is_relative_to(root) and len(deleted) < times:
            deleted.append(folder)
            shutil.rmtree(root)
        build(folder)

    cache = Cache.open(root)
    if times == 1:
        assert cache.get_or_build("kernel", {}, build_in_what_is_deleted).path.is_relative_to(root)
        return
    with pytest.warns(FuselineWarning, match="FL0604.*No such file"):
        entry = cache.get_or_build("kernel", {}, build_in_what_is_deleted)
    assert not entry.path.is_relative_to(root)


def test_a_base_is_never_changed(tmp_path: Path) -> None:
    entry = Cache.open(tmp_path / "base").get_or_build("kernel", {}, build)
    os.utime(entry.path, (1e9, 1e9))
    layered = Cache.open(tmp_path / "own", [tmp_path / "base"])
    assert layered.get("kernel", {}) is not None
    assert entry.path.stat().st_mtime == 1e9


def test_large_files_of_a_base_are_digested_once(tmp_path: Path) -> None:
    """The notes of it are kept in the cache above; the base is not touched."""
    base, own = tmp_path / "base", tmp_path / "own"

    def write(folder: Path) -> None:
        (folder / "w").write_bytes(bytes(17 << 20))

    entry = Cache.open(base).get_or_build("weights", {}, write)
    shutil.rmtree(base / "v1" / "seen")
    assert Cache.open(own, [base]).get("weights", {}) == entry
    assert [p.name for p in own.rglob("*") if p.is_file()] == [f"{entry.key}.json"]
    assert not (base / "v1" / "seen").exists()
    notes = Seen(own / "v1" / "seen")
    assert notes.trusts(entry.key)("w", entry.file("w").stat())
    with entry.file("w").open("r+b") as file:
        file.write(b"y")
    assert Cache.open(own, [base]).get("weights", {}) is None
    assert entry.path.exists()
