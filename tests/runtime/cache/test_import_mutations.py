"""Files of entries that were changed at random, in their bytes and in their sense: each is refused
with a diagnostic, or is in order; and nothing is written but whole entries.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseline.errors import CacheError, Diagnostic
from fuseline.runtime.cache import Cache, canonical
from fuseline.runtime.cache.importing import Imported, import_from
from tests.runtime.cache.transfer_helpers import (
    MUCH,
    Parts,
    exported,
    fill,
    parts_of,
    put,
    together,
    tree,
)

CODES = {"FL0610", "FL0611", "FL0612"}
FAST, SLOW = 100, 1500
"""Examples of each of the two tests."""

Edit: TypeAlias = Callable[[bytes], bytes]
Change: TypeAlias = Callable[[Parts], Parts]


@lru_cache
def original() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder, "cache"))
        return exported(Path(folder, "cache"), Path(folder, "all.zip")).read_bytes()


@lru_cache
def original_parts() -> tuple[tuple[str, bytes], ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "all.zip")
        path.write_bytes(original())
        return tuple(parts_of(path))


def is_accepted(content: bytes) -> bool:
    """Whether a file is imported, after all that must hold in both cases was checked."""
    with tempfile.TemporaryDirectory() as folder:
        arena = Path(folder)
        root, file = arena / "cache", arena / "all.zip"
        put(root, "kernel", {"name": "own"}, {"x": b"own"})
        file.write_bytes(content)
        before = contents(arena)
        done = imported(file, root)
        after = contents(arena)
        assert list((root / "v1" / "staging").iterdir()) == []
        if isinstance(done, Diagnostic):
            assert done.code in CODES, done
            assert str(done).isprintable()
            assert after == before
            return False
        added = {name for name in after if name not in before}
        assert all(name.startswith("cache/v1/entries/") for name in added)
        assert {name: after[name] for name in before} == before
        cache = Cache.open(root)
        assert cache.verify() == []
        assert list(cache.unlisted()) == []
        assert len(list(cache.entries())) == 1 + len(done.new)
        return True


def imported(file: Path, root: Path) -> Imported | Diagnostic:
    try:
        return import_from(file, Cache.open(root), most_bytes=MUCH)
    except CacheError as error:
        return error.diagnostic


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {name: content for name, content in tree(folder).items() if content is not None}


# ------------------------------------------------------------------------------------- bytes

PLACES = st.floats(0, 1) | st.floats(0.9, 1)
"""Where in a file; more often near its end, where its directory is."""
NUMBERS = st.sampled_from([0, 1, 22, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, (1 << 64) - 1])
SOME_BYTES = st.binary(max_size=40) | st.sampled_from(
    [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"../", b"\0", b"[" * 500]
)


def replace(place: float, length: int, by: bytes) -> Edit:
    def edit(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + by + content[at + length :]

    return edit


def flip(place: float, mask: int) -> Edit:
    def edit(content: bytes) -> bytes:
        at = min(int(place * len(content)), len(content) - 1)
        return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :] if content else b""

    return edit


def set_number(place: float, size: int, number: int) -> Edit:
    low = number & ((1 << 8 * size) - 1)
    return replace(place, size, low.to_bytes(size, "little"))


def repeat(place: float, length: int, target: float) -> Edit:
    def edit(content: bytes) -> bytes:
        at = int(place * len(content))
        return replace(target, 0, content[at : at + length])(content)

    return edit


EDITS = st.one_of(
    st.builds(flip, PLACES, st.integers(1, 255)),
    st.builds(replace, PLACES, st.integers(0, 400), SOME_BYTES),
    st.builds(replace, PLACES, st.just(0), SOME_BYTES),
    st.builds(set_number, PLACES, st.sampled_from([1, 2, 4, 8]), NUMBERS),
    st.builds(repeat, PLACES, st.integers(1, 400), PLACES),
    st.builds(replace, PLACES, st.just(1 << 20), st.just(b"")),  # cut off
)


def no_changed_bytes_are_taken(edits: list[Edit]) -> None:
    content = original()
    for edit in edits:
        content = edit(content)
    assert is_accepted(content) == (content == original())


def test_the_original_is_taken() -> None:
    assert is_accepted(original())


quick = settings(
    max_examples=FAST, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
thorough = settings(quick, max_examples=SLOW)


@quick
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_no_changed_bytes_are_taken(edits: list[Edit]) -> None:
    no_changed_bytes_are_taken(edits)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@thorough
@given(st.lists(EDITS, min_size=1, max_size=6))
def test_no_changed_bytes_are_taken_many_times(edits: list[Edit]) -> None:
    no_changed_bytes_are_taken(edits)


# ------------------------------------------------------------------------------------- sense

KEY = sha256(b"key").hexdigest()
NAMES = st.sampled_from(
    [
        "../../evil",
        "/tmp/evil",
        "entries/kernel/../../../evil",
        f"entries/kernel/{KEY}/../../../../../evil",
        f"entries/kernel/{KEY}/evil",
        f"entries/kernel/{KEY}/key.json",
        f"entries/kernel/{KEY}/manifest.json",
        f"entries/{'x' * 40}/{KEY}/evil",
        f"entries/kernel/{KEY[:9]}/evil",
        "format.json",
        "z",
    ]
) | st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=90)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["/etc/passwd", "\x1b[2J", "\ud800", "sm_90", KEY]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PICKS = st.integers(0, 99)


def renamed(pick: int, name: str) -> Change:
    def change(parts: Parts) -> Parts:
        at = pick % len(parts)
        return [*parts[:at], (name, parts[at][1]), *parts[at + 1 :]]

    return change


def dropped(pick: int) -> Change:
    return lambda parts: [part for at, part in enumerate(parts) if at != pick % len(parts)]


def added(name: str, content: bytes) -> Change:
    return lambda parts: [*parts, (name, content)]


def copied(pick: int, name: str) -> Change:
    return lambda parts: [*parts, (name, parts[pick % len(parts)][1])]


def rewritten(pick: int, edit: Edit) -> Change:
    def change(parts: Parts) -> Parts:
        at = pick % len(parts)
        return [*parts[:at], (parts[at][0], edit(parts[at][1])), *parts[at + 1 :]]

    return change


def json_changed(pick: int, step: int, value: Any) -> Change:
    """Another value somewhere in a description, spelled as it should be where that can be done."""

    def edit(content: bytes) -> bytes:
        try:
            whole: Any = json.loads(content)
            if not isinstance(whole, dict):
                return content
            inside = cast("dict[str, Any]", whole)
            for _ in range(step % 4):
                key = sorted(inside)[step % len(inside)]
                if not isinstance(inside[key], dict) or not inside[key]:
                    break
                inside = inside[key]
            inside[sorted(inside)[step % len(inside)]] = value
            return canonical(cast("object", whole)).encode()
        except (ValueError, ZeroDivisionError):
            return json.dumps(value).encode()

    def change(parts: Parts) -> Parts:
        described = [at for at, (name, _) in enumerate(parts) if name.endswith(".json")]
        return rewritten(described[pick % len(described)], edit)(parts) if described else parts

    return change


def put_right(parts: Parts) -> Parts:
    """Manifests, keys and counts made to fit what there is, so that an entry is taken again."""
    by_folder: dict[str, dict[str, bytes]] = {}
    for name, content in parts:
        folder, _, file = name.rpartition("/")
        by_folder.setdefault(folder, {})[file] = content
    top = by_folder.pop("", {})
    made: Parts = []
    total = 0
    for folder, files in by_folder.items():
        plain = {n: c for n, c in files.items() if n not in ("key.json", "manifest.json")}
        total += sum(map(len, plain.values()))
        records = {n: {"size": len(c), "sha256": digest(c)} for n, c in plain.items()}
        manifest = canonical({"schema": 1, "files": records}).encode()
        key = files.get("key.json", b"{}")
        place = folder.rpartition("/")[0] + "/" + digest(key) if "/" in folder else folder
        for name, content in {**plain, "key.json": key, "manifest.json": manifest}.items():
            made.append((f"{place}/{name}", content))
    known = {"format": "fuseline-cache", "version": 1, "schema": 1}
    counts = {"entries": len(by_folder), "bytes": total}
    top["format.json"] = canonical({**known, **counts}).encode()
    return [*made, *top.items()]


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


CHANGES = st.one_of(
    st.builds(renamed, PICKS, NAMES),
    st.builds(dropped, PICKS),
    st.builds(added, NAMES, st.binary(max_size=99)),
    st.builds(copied, PICKS, NAMES),
    st.builds(rewritten, PICKS, EDITS),
    st.builds(json_changed, PICKS, PICKS, VALUES),
)


def changed_sense_does_no_harm(changes: list[Change], repaired: bool) -> bool:
    parts = list(original_parts())
    for change in changes:
        parts = change(parts) or [("z", b"")]
    if repaired:
        parts = put_right(parts)
    return is_accepted(together(parts))


def test_what_is_put_right_is_taken() -> None:
    """So that the changes below are found out for themselves, and not for counts that are off."""
    assert changed_sense_does_no_harm([], repaired=True)
    assert changed_sense_does_no_harm([dropped(0)], repaired=True)
    kernel = next(at for at, (name, _) in enumerate(original_parts()) if name.endswith(".o"))
    assert changed_sense_does_no_harm([rewritten(kernel, flip(0.5, 1))], repaired=True)


@quick
@given(st.lists(CHANGES, min_size=1, max_size=3), st.booleans())
def test_changed_sense_does_no_harm(changes: list[Change], repaired: bool) -> None:
    changed_sense_does_no_harm(changes, repaired)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@thorough
@given(st.lists(CHANGES, min_size=1, max_size=6), st.booleans())
def test_changed_sense_does_no_harm_many_times(changes: list[Change], repaired: bool) -> None:
    changed_sense_does_no_harm(changes, repaired)
