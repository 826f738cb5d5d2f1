"""The driver of the memory checker, without one: what it would run, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuseline.codegen import kernel
from tests.gpu import memory_check

TEMPLATES = Path(kernel.__file__).parents[1] / "templates"
ROOT = Path(__file__).parents[3]


def test_every_template_has_a_test() -> None:
    folders = (TEMPLATES / "triton", TEMPLATES / "cuda")
    names = {path.name.split(".")[0] for folder in folders for path in folder.iterdir()}
    assert set(memory_check.CASES) == {name for name in names if not name.startswith("_")}
    for case in memory_check.CASES.values():
        file, _, name = case.partition("::")
        text = (Path(__file__).parent / file).read_text()
        assert name.partition("[")[0] in text, case


@pytest.mark.slow
def test_pytest_finds_the_tests() -> None:
    tests = memory_check.command("tool")[-len(set(memory_check.CASES.values())) :]
    listed = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", *tests]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("::") == len(tests)


def test_without_the_tool_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert memory_check.main() == 0
    assert "there is no compute-sanitizer on the path" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "words"), [(0, "found nothing"), (1, "found errors")])
def test_what_the_tool_answers_is_the_result(
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A script stands in for it, and keeps what it was asked for."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" > {tmp_path}/asked\n'
                    f"exit {status}\n")  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert memory_check.main() == status
    assert words in capsys.readouterr().out
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("1 --tool memcheck --error-exitcode 1")
    assert "--device cuda tests/codegen/gpu/" in asked
    assert " tests/codegen/gpu/test_index.py::test_argmax[f32-63]" in asked
