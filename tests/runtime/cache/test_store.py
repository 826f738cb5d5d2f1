"""What is built is found again, whole, by its factors; what is damaged is built again."""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseline import errors
from fuseline.runtime.cache import Cache, Difference, Factors, Json, brief, key_of

FACTORS: Factors = {
    "name": "add",
    "source": "abc",
    "flags": ["-O3", "-mavx2"],
    "cpu": {"fma": True},
}


class Builder:
    """Writes one file with the given bytes, and counts."""

    def __init__(self, content: bytes = b"code") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "kernel.o").write_bytes(self.content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_an_entry_is_built_once_and_found_by_another_cache(root: Path) -> None:
    build = Builder()
    first = Cache.open(root).get_or_build("kernel", FACTORS, build)
    other = Cache.open(root)
    second = other.get_or_build("kernel", FACTORS, build)
    assert build.calls == 1
    assert second == first
    assert second.file("kernel.o").read_bytes() == b"code"
    assert (other.stats.hits, other.stats.built) == (1, 0)


def test_every_factor_and_the_kind_are_part_of_the_key() -> None:
    changed: list[Factors] = [
        {**FACTORS, "source": "abd"},
        {**FACTORS, "flags": ["-mavx2", "-O3"]},
        {**FACTORS, "cpu": {"fma": False}},
        {**FACTORS, "more": None},
    ]
    keys = {key_of("kernel", factors) for factors in changed}
    keys |= {key_of("kernel", FACTORS), key_of("piece", FACTORS)}
    assert len(keys) == 6
    assert key_of("kernel", dict(reversed(list(FACTORS.items())))) == key_of("kernel", FACTORS)


def test_a_path_is_no_factor() -> None:
    with pytest.raises(ValueError, match=r"the factor cpu\.home of a kernel entry is a path"):
        key_of("kernel", {"cpu": {"home": "/home/me"}})


def test_looking_up_writes_nothing(root: Path) -> None:
    cache = Cache.open(root)
    assert cache.get("kernel", FACTORS) is None
    assert list(cache.entries()) == []
    assert cache.verify() == []
    assert not root.exists()


def test_directories_and_files_are_for_their_owner_only(root: Path) -> None:
    before = os.umask(0)
    try:
        Cache.open(root).get_or_build("kernel", FACTORS, Builder())
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (root, *root.rglob("*"))}
    assert modes == {0o700, 0o600}


def test_entries_name_no_path_time_user_or_host(root: Path) -> None:
    entry = Cache.open(root).get_or_build("kernel", FACTORS, Builder())
    texts = [path.read_text() for path in entry.path.iterdir()]
    for word in (str(root), platform.node(), str(Path.home()), getpass.getuser() + "@"):
        assert not any(word in text for text in texts)
    other = Cache.open(root.parent / "other").get_or_build("kernel", FACTORS, Builder())
    assert [p.read_bytes() for p in sorted(entry.path.iterdir())] == [
        p.read_bytes() for p in sorted(other.path.iterdir())
    ]


def test_key_json_lists_the_factors(root: Path) -> None:
    entry = Cache.open(root).get_or_build("kernel", FACTORS, Builder())
    described = json.loads((entry.path / "key.json").read_text())
    assert (described["kind"], described["factors"]) == ("kernel", FACTORS)


def test_a_failed_build_is_passed_on_and_leaves_nothing(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    cache = Cache.open(root)
    with pytest.raises(RuntimeError, match="no"):
        cache.get_or_build("kernel", FACTORS, build)
    assert not [path for path in root.rglob("*") if path.is_file()]
    cache.get_or_build("kernel", FACTORS, Builder())


def test_no_entry_holds_folders_or_reserved_names(root: Path) -> None:
    cache = Cache.open(root)
    with pytest.raises(ValueError, match=r"cannot hold 'key\.json'"):
        cache.get_or_build("kernel", {}, lambda folder: (folder / "key.json").touch())
    with pytest.raises(ValueError, match="cannot hold 'sub'"):
        cache.get_or_build("kernel", {}, lambda folder: (folder / "sub").mkdir())


def truncate(entry: Path) -> None:
    (entry / "kernel.o").write_bytes(b"co")


def flip(entry: Path) -> None:
    (entry / "kernel.o").write_bytes(b"code"[::-1])


def lose_a_file(entry: Path) -> None:
    (entry / "kernel.o").unlink()


def add_a_file(entry: Path) -> None:
    (entry / "extra").touch()


def break_the_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text('{"schema": 1, "files": ')


def empty_the_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text("[]")


def change_the_factors(entry: Path) -> None:
    path = entry / "key.json"
    path.write_text(path.read_text().replace("abc", "abd"))


def lose_the_key(entry: Path) -> None:
    (entry / "key.json").unlink()


def open_to_others(entry: Path) -> None:
    (entry / "kernel.o").chmod(0o666)


def open_the_folder_to_others(entry: Path) -> None:
    entry.chmod(0o777)


def link_elsewhere(entry: Path) -> None:
    target = entry.parent / "elsewhere"
    target.write_bytes(b"code")
    (entry / "kernel.o").unlink()
    (entry / "kernel.o").symlink_to(target)


DAMAGES = [
    truncate,
    flip,
    lose_a_file,
    add_a_file,
    break_the_manifest,
    empty_the_manifest,
    change_the_factors,
    lose_the_key,
    open_to_others,
    open_the_folder_to_others,
    link_elsewhere,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_reported_set_aside_and_rebuilt(
    root: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    build = Builder()
    damage(Cache.open(root).get_or_build("kernel", FACTORS, build).path)
    assert [d.code for d in Cache.open(root).verify()] == ["FL0606"]
    with caplog.at_level(logging.WARNING):
        entry = Cache.open(root).get_or_build("kernel", FACTORS, build)
    assert build.calls == 2
    assert entry.file("kernel.o").read_bytes() == b"code"
    assert "FL0606 damaged cache entry kernel" in caplog.text
    assert Cache.open(root).verify() == []
    assert len(list((root / "v1" / "aside").iterdir())) == 1


def test_few_damaged_entries_are_kept_aside(root: Path) -> None:
    for _ in range(12):
        truncate(Cache.open(root).get_or_build("kernel", FACTORS, Builder()).path)
    assert len(list((root / "v1" / "aside").iterdir())) == 8


def test_a_large_file_is_digested_again_only_once_it_was_written_to(root: Path) -> None:
    content = b"x" * (17 << 20)
    entry = Cache.open(root).get_or_build("weights", FACTORS, Builder(content))
    assert (root / "v1" / "seen" / f"{entry.key}.json").exists()
    assert Cache.open(root).get("weights", FACTORS) == entry
    (root / "v1" / "seen" / f"{entry.key}.json").write_text("?")  # notes may be lost
    assert Cache.open(root).get("weights", FACTORS) == entry
    with entry.file("kernel.o").open("r+b") as file:
        file.write(b"y")
    assert Cache.open(root).get("weights", FACTORS) is None


def test_a_copy_at_another_path_builds_nothing(root: Path, tmp_path: Path) -> None:
    Cache.open(root).get_or_build("kernel", FACTORS, Builder())
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy)
    shutil.rmtree(root)
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    build = Builder()
    cache = Cache.open(copy)
    entry = cache.get_or_build("kernel", FACTORS, build)
    assert build.calls == 0
    assert entry.path.is_relative_to(copy)
    assert cache.verify() == []


def test_layers_are_read_in_order_and_only_the_first_is_written(root: Path, tmp_path: Path) -> None:
    base, build = tmp_path / "base", Builder()
    Cache.open(base).get_or_build("kernel", FACTORS, build)
    before = sorted(base.rglob("*"))
    cache = Cache.open(root, [base])
    assert cache.get_or_build("kernel", FACTORS, build).path.is_relative_to(base)
    new = cache.get_or_build("kernel", {**FACTORS, "source": "new"}, build)
    assert new.path.is_relative_to(root)
    assert build.calls == 2
    assert sorted(base.rglob("*")) == before
    assert {entry.key for entry in cache.entries()} == {new.key, key_of("kernel", FACTORS)}


def test_a_damaged_entry_of_a_base_is_built_above_it(root: Path, tmp_path: Path) -> None:
    base, build = tmp_path / "base", Builder()
    truncate(Cache.open(base).get_or_build("kernel", FACTORS, build).path)
    entry = Cache.open(root, [base]).get_or_build("kernel", FACTORS, build)
    assert entry.path.is_relative_to(root)
    assert Cache.open(root, [base]).get("kernel", FACTORS) == entry
    assert [d.code for d in Cache.open(base).verify()] == ["FL0606"]  # left as it was


def fill(cache: Cache, count: int) -> list[Path]:
    """So many entries of 1000 bytes, the first unused for the longest time."""
    paths: list[Path] = []
    for i in range(count):
        entry = cache.get_or_build("kernel", {"name": f"k{i}"}, Builder(bytes(1000)))
        os.utime(entry.path, (1e9 + i, 1e9 + i))
        paths.append(entry.path)
    return paths


def test_prune_removes_what_was_unused_for_longest(root: Path) -> None:
    paths = fill(Cache.open(root), 5)
    cache = Cache.open(root)
    cache.get("kernel", {"name": "k0"})  # which uses it
    pruned = cache.prune(max_bytes=2500)
    assert (pruned.entries, pruned.bytes) == (3, 3000)
    assert [path.exists() for path in paths] == [True, False, False, False, True]
    assert Cache.open(root).verify() == []


def test_prune_by_age(root: Path) -> None:
    paths = fill(Cache.open(root), 3)
    os.utime(paths[1])
    assert Cache.open(root).prune(older_than=3600).entries == 2
    assert [path.exists() for path in paths] == [False, True, False]


def test_an_entry_pruned_by_another_process_is_built_again(root: Path) -> None:
    cache, build = Cache.open(root), Builder()
    cache.get_or_build("kernel", FACTORS, build)
    assert Cache.open(root).prune(max_bytes=0).entries == 1
    assert cache.get_or_build("kernel", FACTORS, build).file("kernel.o").exists()
    assert build.calls == 2


def test_clear(root: Path) -> None:
    cache = Cache.open(root)
    fill(cache, 3)
    assert cache.clear().entries == 3
    assert list(cache.entries()) == []
    assert not [path for path in root.rglob("*") if path.is_file()]
    fill(cache, 1)


def test_why_names_the_nearest_entry_of_the_name_and_the_factors_that_differ(root: Path) -> None:
    cache = Cache.open(root)
    # One factor fewer than all that differ below, but of another kernel.
    cache.get_or_build("kernel", {**FACTORS, "name": "mul", "cpu": {"fma": True}}, Builder())
    cache.get_or_build("kernel", {**FACTORS, "source": "x", "flags": [], "more": 1}, Builder())
    cache.get_or_build("kernel", {**FACTORS, "flags": ["-O2", "-mavx2"]}, Builder())
    entry = cache.get_or_build("kernel", {**FACTORS, "cpu": {"fma": True, "f16c": True}}, Builder())
    (why,) = cache.why(entry.key[:10])
    assert why.entry == entry
    assert why.others == 2
    assert why.nearest is not None
    assert why.nearest.factors["flags"] == ["-O2", "-mavx2"]
    assert [str(d) for d in why.differences] == [
        "cpu.f16c: True here, none there",
        "flags: -O3 here, -O2 there",
    ]
    assert len(cache.why("add")) == 3
    assert len(cache.why("kernel")) == 4
    near = cache.nearest("kernel", FACTORS)
    assert near is not None
    assert near.name in {"add", "mul"}


def test_why_of_a_single_entry_has_nothing_to_compare(root: Path) -> None:
    cache = Cache.open(root)
    cache.get_or_build("kernel", FACTORS, Builder())
    cache.get_or_build("kernel", {**FACTORS, "name": "mul"}, Builder())
    cache.get_or_build("piece", FACTORS, Builder())
    why = cache.why("add")[0]
    assert (why.others, why.nearest, why.differences) == (0, None, ())


def test_why_of_an_unknown_name_lists_near_ones(root: Path) -> None:
    cache = Cache.open(root)
    for name in ("row_norm_01", "qk_norm_02", "gemv_03"):
        cache.get_or_build("kernel", {"name": name}, Builder())
    with pytest.raises(errors.CacheError, match="FL0607 .*like qk_norm_02, row_norm_01. Hint"):
        cache.why("norm")
    with pytest.raises(errors.CacheError, match="FL0607 .*like gemv_03. Hint"):
        cache.why("gevm_03")
    with pytest.raises(errors.CacheError, match="FL0607 [^:]*. Hint"):
        cache.why("softmax")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "none"),
        ([], "none"),
        (False, "False"),
        ("9f3c0a71d2e4" * 5, "9f3c0a71d2e4"),
        (["-O3", "9f3c0a71d2e4" * 5], "-O3 9f3c0a71d2e4"),
        ("word " * 20, f"{'word ' * 11}wo..."),
        (["-mavx2"] * 90, f"{'-mavx2 ' * 8}... (90 in all)"),
    ],
)
def test_factors_are_shown_in_a_few_words(value: Json, said: str) -> None:
    assert brief(value) == said
    assert str(Difference("x", value, 1)) == f"x: {said} here, 1 there"


def test_lists_in_another_order_differ_in_that() -> None:
    assert str(Difference("flags", ["a", "b"], ["b", "a"])) == "flags: the same in another order"
