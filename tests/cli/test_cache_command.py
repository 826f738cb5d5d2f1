"""`fuseline cache`: thin over the cache, whose own tests are in tests/runtime/cache."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuseline.cli import main
from fuseline.cli.output import Output
from fuseline.cli.units import age, bytes_text, size
from fuseline.runtime.cache import Cache, Entry

Print = pytest.CaptureFixture[str]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("FUSELINE_CACHE_DIR", str(path))
    return path


def put(root: Path, name: str, flags: str, content: bytes = b"code") -> Entry:
    def build(folder: Path) -> None:
        (folder / "kernel.o").write_bytes(content)

    return Cache.open(root).get_or_build("kernel", {"name": name, "flags": flags}, build)


def answer(capsys: Print) -> Any:
    return json.loads(capsys.readouterr().out)


def test_path(root: Path, capsys: Print) -> None:
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out == f"{root}\n"
    assert not root.exists()


def test_an_option_wins_over_the_variable(root: Path, tmp_path: Path, capsys: Print) -> None:
    del root
    assert main(["cache", "path", "--set", f"cache-dir={tmp_path}/other", "--json"]) == 0
    assert answer(capsys) == {"path": f"{tmp_path}/other", "bases": []}


def test_list(root: Path, capsys: Print) -> None:
    entries = [put(root, "row_norm", "-O3"), put(root, "gemv", "-O3", b"x" * 2000)]
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == (
        f"{entries[1].key[:12]}  kernel  gemv      2.0 kB\n"
        f"{entries[0].key[:12]}  kernel  row_norm  4 B\n"
        "2 entries, 2.0 kB\n"
    )
    assert main(["cache", "list", "--json"]) == 0
    listed = answer(capsys)
    assert [e["name"] for e in listed["entries"]] == ["gemv", "row_norm"]
    assert listed["entries"][0]["bytes"] == 2000


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "base"
    monkeypatch.setenv("FUSELINE_CACHE_BASE", str(path))
    return path


def state(folder: Path) -> dict[str, tuple[float, bytes]]:
    """When everything below a folder was changed last, and what the files hold."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(p): (p.stat().st_mtime, p.read_bytes() if p.is_file() else b"") for p in paths}


def test_list_tells_the_layer(root: Path, base: Path, capsys: Print) -> None:
    """Of an entry that is in two layers, the one that is read."""
    below, both = put(base, "gemv", "-O3"), put(base, "row_norm", "-O3")
    put(root, "row_norm", "-O3")
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == (
        f"{below.key[:12]}  kernel  gemv      4 B  {base}\n"
        f"{both.key[:12]}  kernel  row_norm  4 B  {root}\n"
        "2 entries, 8 B\n"
    )
    assert main(["cache", "list", "--json"]) == 0
    listed = answer(capsys)
    assert listed["layers"] == [str(root), str(base)]
    assert [e["layer"] for e in listed["entries"]] == [str(base), str(root)]


def test_path_is_that_of_the_layer_that_is_written(root: Path, base: Path, capsys: Print) -> None:
    put(base, "gemv", "-O3")
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out == f"{root}\n"
    assert main(["cache", "path", "--json"]) == 0
    assert answer(capsys) == {"path": str(root), "bases": [str(base)]}


@pytest.mark.parametrize(
    "words", [["clear"], ["prune", "--max-size", "0"], ["prune", "--older-than", "0s"]]
)
def test_what_removes_leaves_the_base_alone(
    words: list[str], root: Path, base: Path, capsys: Print
) -> None:
    put(base, "gemv", "-O3")
    own = put(root, "row_norm", "-O3")
    before = state(base)
    assert main(["cache", *words]) == 0
    assert capsys.readouterr().out == "removed 1 entry, 4 B\n"
    assert not own.path.exists()
    assert state(base) == before


def test_verify_looks_at_the_base_and_leaves_it_alone(
    root: Path, base: Path, capsys: Print
) -> None:
    put(root, "gemv", "-O3")
    torn = put(base, "gemv", "-O2")
    torn.file("kernel.o").write_bytes(b"evil")
    before = state(base)
    assert main(["cache", "verify"]) == 1
    said = capsys.readouterr().out
    assert f"in {torn.path}: found kernel.o does not have the digest" in said
    assert "Hint: it is built again, above this base, when it is needed; the base is never" in said
    assert said.endswith(f"checked 2 entries in {root}: 1 damaged\n")
    assert state(base) == before


def test_why_reads_the_base(root: Path, base: Path, capsys: Print) -> None:
    one, two = put(root, "gemv", "-O3"), put(base, "gemv", "-O2")
    assert main(["cache", "why", one.key[:10]]) == 0
    assert f"the only other one, {two.key[:12]}, differs in" in capsys.readouterr().out


def test_verify(root: Path, capsys: Print) -> None:
    """Counts what was checked, that which cannot be listed any more as well."""
    put(root, "gemv", "-O3")
    torn, undescribed = put(root, "gemv", "-O2"), put(root, "gemv", "-O1")
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == f"checked 3 entries in {root}: none damaged\n"
    torn.file("kernel.o").write_bytes(b"evil")
    (undescribed.path / "key.json").unlink()
    assert main(["cache", "verify"]) == 1
    said = capsys.readouterr().out
    assert f"in {torn.path}: found kernel.o does not have the digest of its manifest. Hint" in said
    assert f"in {undescribed.path}: found its description cannot be read" in said
    assert "delete this directory, or the whole cache with `fuseline cache clear`." in said
    assert said.endswith(f"checked 3 entries in {root}: 2 damaged\n")
    assert main(["cache", "verify", "--json"]) == 1
    found = answer(capsys)
    assert found["entries"] == 3
    assert {(d["code"], d["where"]) for d in found["damaged"]} == {
        ("FL0606", str(torn.path)),
        ("FL0606", str(undescribed.path)),
    }


def test_clear_removes_what_is_damaged(root: Path, capsys: Print) -> None:
    """As the hint of `verify` says; `prune` cannot tell how long such an entry was not used."""
    (put(root, "gemv", "-O3").path / "key.json").unlink()
    assert main(["cache", "clear"]) == 0
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out.endswith(f"checked 0 entries in {root}: none damaged\n")


def test_why(root: Path, capsys: Print) -> None:
    one, two = put(root, "gemv", "-O3"), put(root, "gemv", "-O2")
    put(root, "row_norm", "-O3")
    assert main(["cache", "why", one.key[:10]]) == 0
    assert capsys.readouterr().out == (
        f"kernel gemv, {one.key[:12]}: the only other one, {two.key[:12]}, differs in\n"
        "  flags: -O3 here, -O2 there\n"
    )
    assert main(["cache", "why", one.key, "--json"]) == 0
    (said,) = answer(capsys)["entries"]
    assert said["nearest"] == two.key
    assert said["differences"] == [{"factor": "flags", "here": "-O3", "there": "-O2"}]
    assert main(["cache", "why", "absent"]) == 1
    assert "FL0607" in capsys.readouterr().err


def test_why_says_of_a_pair_once_how_it_differs(root: Path, capsys: Print) -> None:
    for flags in ("-O3", "-O2"):
        put(root, "gemv", flags)
    assert main(["cache", "why", "gemv"]) == 0
    assert capsys.readouterr().out.count("differs in") == 1


def test_why_of_several_names_the_nearest(root: Path, capsys: Print) -> None:
    one, *_ = [put(root, "gemv", flags) for flags in ("-O3", "-O2", "-O1")]
    assert main(["cache", "why", one.key]) == 0
    assert "the nearest of 2 others, " in capsys.readouterr().out


def test_why_of_the_only_one_says_what_its_key_is_made_of(root: Path, capsys: Print) -> None:
    one = put(root, "gemv", "-O3")
    put(root, "row_norm", "-O3")
    assert main(["cache", "why", "gemv"]) == 0
    assert capsys.readouterr().out == (
        f"kernel gemv, {one.key[:12]}: the only one of its name, so there is nothing to compare. "
        "Its key is made of\n"
        "  flags  -O3\n"
        "  name   gemv\n"
    )
    assert main(["cache", "why", "gemv", "--json"]) == 0
    (said,) = answer(capsys)["entries"]
    assert (said["key"], said["nearest"], said["differences"]) == (one.key, None, [])
    assert said["factors"] == {"flags": "-O3", "name": "gemv"}


def test_prune_by_age_and_by_size(root: Path, capsys: Print) -> None:
    old = put(root, "old", "-O3")
    put(root, "new", "-O3", b"x" * 1500)
    then = time.time() - 3 * 86400
    os.utime(old.path, (then, then))
    assert main(["cache", "prune", "--older-than", "2d"]) == 0
    assert capsys.readouterr().out == "removed 1 entry, 4 B\n"
    assert main(["cache", "prune", "--max-size", "1K", "--json"]) == 0
    assert answer(capsys) == {"entries": 1, "bytes": 1500}


def test_prune_needs_a_limit(root: Path, capsys: Print) -> None:
    put(root, "gemv", "-O3")
    assert main(["cache", "prune"]) == 2
    assert "FL0103 wrong argument of `cache prune`: found no limit" in capsys.readouterr().err


def test_clear(root: Path, capsys: Print) -> None:
    put(root, "gemv", "-O3")
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "removed 1 entry, 4 B\n"
    assert list(Cache.open(root).entries()) == []


def test_entries_are_taken_from_one_cache_to_another(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    one, two = put(root, "gemv", "-O3"), put(root, "row_norm", "-O3", b"x" * 2000)
    file = tmp_path / "all.zip"
    assert main(["cache", "export", str(file)]) == 0
    said = capsys.readouterr()
    assert said.out == f"wrote {file}: 2 entries, 2.0 kB (2 kernel)\n"
    assert said.err == f"writing {file} ...\n"
    monkeypatch.setenv("FUSELINE_CACHE_DIR", str(tmp_path / "other"))
    put(tmp_path / "other", "gemv", "-O3")
    assert main(["cache", "import", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        f"{two.key[:12]}  kernel  row_norm  2.0 kB  new\n"
        f"{one.key[:12]}  kernel  gemv      4 B     there already\n"
        f"would import 1 entry, 2.0 kB, to {tmp_path}/other; 1 entry there already\n"
    )
    assert len(list(Cache.open(tmp_path / "other").entries())) == 1
    assert main(["cache", "import", str(file)]) == 0
    assert capsys.readouterr().out == (
        f"imported 1 entry, 2.0 kB, to {tmp_path}/other; 1 entry there already\n"
    )
    assert {e.key for e in Cache.open(tmp_path / "other").entries()} == {one.key, two.key}


def test_export_and_import_for_programs(root: Path, tmp_path: Path, capsys: Print) -> None:
    entry = put(root, "gemv", "-O3")
    file = tmp_path / "all.zip"
    assert main(["cache", "export", str(file), "--json"]) == 0
    assert answer(capsys) == {
        "file": str(file),
        "entries": 1,
        "bytes": 4,
        "kinds": {"kernel": 1},
        "damaged": [],
    }
    other = tmp_path / "other"
    argv = ["cache", "import", str(file), "--set", f"cache-dir={other}", "--json"]
    described = {"key": entry.key, "kind": "kernel", "name": "gemv", "bytes": 4}
    for present, dry in ((False, True), (False, False), (True, False)):
        assert main([*argv, *["--dry-run"] * dry]) == 0
        assert answer(capsys) == {
            "file": str(file),
            "path": str(other),
            "dry_run": dry,
            "imported": int(not (dry or present)),
            "present": int(present),
            "bytes": 0 if present else 4,
            "entries": [{**described, "present": present}],
        }


def test_export_of_some(root: Path, tmp_path: Path, capsys: Print) -> None:
    for name in ("gemv_1", "gemv_2", "row_norm"):
        put(root, name, "-O3")
    file = str(tmp_path / "some.zip")
    some = ["--kind", "kernel", "--name", "gemv*", "--target", "sm_90", "--since", "1d", "--json"]
    assert main(["cache", "export", file, *some]) == 0
    assert answer(capsys)["entries"] == 2
    assert main(["cache", "export", file, "--kind", "cubin", "--name", "x*"]) == 1
    assert "FL0607 no cache entry that matches --kind cubin --name x*" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["cache", "export", file, "--target", "sm_1"])


def test_damage_is_left_out_of_an_export_and_said(
    root: Path, tmp_path: Path, capsys: Print
) -> None:
    """Whether it shows at once or while bytes are copied."""
    put(root, "gemv", "-O3")
    torn, cut = put(root, "gemv", "-O2"), put(root, "gemv", "-O1")
    torn.file("kernel.o").write_bytes(b"evil")
    cut.file("kernel.o").write_bytes(b"c")
    assert main(["cache", "export", str(tmp_path / "all.zip"), "--json"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["entries"] == 1
    assert {d["where"] for d in found["damaged"]} == {str(torn.path), str(cut.path)}
    assert said.err.count("FL0606") == 2


def test_import_of_what_is_wrong_or_too_large(root: Path, tmp_path: Path, capsys: Print) -> None:
    put(root, "gemv", "-O3")
    file = tmp_path / "all.zip"
    assert main(["cache", "export", str(file)]) == 0
    assert main(["cache", "import", str(file), "--max-size", "100"]) == 1
    assert "FL0612" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["cache", "import", str(file), "--json"]) == 1
    assert answer(capsys)["error"]["code"] == "FL0610"


@pytest.mark.parametrize("action", ["export", "import"])
def test_help_has_an_example(action: str, capsys: Print) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["cache", action, "--help"])
    assert f"example:\n  fuseline cache {action} " in capsys.readouterr().out


def test_progress_on_a_terminal_counts_the_entries(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    for name in ("gemv", "row_norm"):
        put(root, name, "-O3")
    shown: list[str] = []

    @contextmanager
    def step(self: Output, text: str) -> Generator[Callable[[str], None]]:
        del self
        yield lambda detail: shown.append(f"{text}: {detail}")

    monkeypatch.setattr(Output, "step", step)
    assert main(["cache", "export", str(tmp_path / "all.zip")]) == 0
    assert main(["cache", "import", str(tmp_path / "all.zip")]) == 0
    capsys.readouterr()
    assert [line.rpartition(": ")[2] for line in shown] == ["1 of 2 entries", "2 of 2 entries"] * 2


def test_a_cache_that_is_a_file(root: Path, capsys: Print) -> None:
    root.write_text("not a directory")
    assert main(["cache", "list"]) == 1
    assert "FL0601" in capsys.readouterr().err


def test_units() -> None:
    assert [age("90s"), age("12h"), age("1.5d"), age("7")] == pytest.approx([90, 43200, 129600, 7])
    assert [size("500"), size("2G"), size("1.5mb")] == [500, 2 << 30, 3 << 19]
    assert [bytes_text(n) for n in (5, 1500, 2_500_000, 7_000_000_000)] == [
        "5 B",
        "1.5 kB",
        "2.5 MB",
        "7.0 GB",
    ]
