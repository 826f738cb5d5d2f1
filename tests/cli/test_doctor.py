"""`fuseline doctor` says what is there, where values come from, and what will not work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseline import __version__
from fuseline.cli import main

Print = pytest.CaptureFixture[str]


def examined(capsys: Print, *argv: str) -> tuple[int, Any]:
    code = main(["doctor", "--json", *argv])
    return code, json.loads(capsys.readouterr().out)


def test_a_healthy_machine_is_0(capsys: Print) -> None:
    code, found = examined(capsys)
    assert (code, found["problems"]) == (0, [])
    assert found["fuseline"] == __version__
    assert torch.__version__.startswith(found["versions"]["torch"])  # with or without "+cpu"
    assert found["compiler"]["command"].endswith("++")
    assert "cores" in found["devices"]["cpu"]


def test_options_have_their_origin(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    monkeypatch.setenv("FUSELINE_STRICT", "1")
    _, found = examined(capsys, "--set", "disable=cse,dce")
    options = {option["name"]: option for option in found["options"]}
    assert (options["strict"]["value"], options["strict"]["origin"]) == (True, "environment")
    assert (options["disable"]["value"], options["disable"]["origin"]) == (
        ["cse", "dce"],
        "argument",
    )
    assert options["graphs"]["origin"] == "default"


def test_text_has_all_sections(capsys: Print) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for title in ("versions", "compiler", "devices", "directories", "options", "problems"):
        assert f"\n{title}\n" in f"\n{text}"
    assert "FUSELINE_CACHE_DIR" in text


def test_no_compiler_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    code, found = examined(capsys)
    assert code == 1
    assert found["compiler"] == {"problem": found["problems"][0]}
    assert "FL0701 no C++ compiler" in found["problems"][0]


def test_a_compiler_that_does_not_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    (tmp_path / "g++").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, found = examined(capsys)
    assert code == 1
    assert "FL0702 unusable C++ compiler" in found["problems"][0]


def test_a_cache_that_cannot_be_used_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Print
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSELINE_CACHE_DIR", str(tmp_path / "file"))
    code, found = examined(capsys)
    assert code == 1
    assert "FL0601" in found["problems"][0]


def test_a_dump_directory_that_is_a_file_is_a_problem(tmp_path: Path, capsys: Print) -> None:
    (tmp_path / "file").write_text("")
    code, found = examined(capsys, "--set", f"dump_dir={tmp_path}/file")
    assert code == 1
    assert "not a directory" in found["problems"][0]


def test_directories_that_do_not_exist_are_not_made(tmp_path: Path, capsys: Print) -> None:
    code, found = examined(capsys, "--set", f"cache_dir={tmp_path}/a/b")
    assert code == 0
    assert "will be made" in found["directories"][0]["state"]
    assert not (tmp_path / "a").exists()


def test_misspelt_variables_are_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: Print) -> None:
    monkeypatch.setenv("FUSELINE_TREADS", "2")
    code, found = examined(capsys)
    assert code == 1
    assert found["problems"] == ["FUSELINE_TREADS is no option of fuseline"]
