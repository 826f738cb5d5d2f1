"""A failing pass is reported with the IR before it and a command that replays it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fuseline
from fuseline.cli import main as main_command
from fuseline.debug.case import Case
from fuseline.debug.reproducer import main
from fuseline.errors import InternalError
from fuseline.ir.core import Func
from fuseline.ir.text import parse_func
from fuseline.passes import pipeline
from fuseline.passes.dce import Dce
from fuseline.passes.rewrite import FuncPass, Pass


@dataclass(frozen=True)
class _Fails(FuncPass):
    """Fails after it has begun to edit."""

    def run(self, func: Func) -> None:
        func.set_returns([])
        raise RuntimeError("this pass is broken")


def _failing_pipeline(*, cache_latents: bool, on_gpu: bool) -> list[Pass]:
    assert not cache_latents
    assert not on_gpu
    return [Dce(), _Fails()]


def _double(x: Tensor) -> Tensor:
    return x + x


def test_a_failing_pass_saves_the_func_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr("fuseline.compiler.default_pipeline", _failing_pipeline)
    double = fuseline.compile(_double, dump_dir=tmp_path)
    with torch.no_grad(), pytest.raises(Exception, match="this pass is broken") as caught:
        double(torch.ones(3))
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, InternalError):
        error = error.__cause__ or getattr(error, "inner_exception", None)
    assert isinstance(error, InternalError)
    assert error.reproducer is not None
    case = Case.read(error.reproducer)
    assert case.pipeline == _Fails.name
    assert case.failed == f"{_Fails.name}: RuntimeError: this pass is broken"
    assert main_command(["repro", str(error.reproducer)]) == 1, "it fails again"
    func = parse_func(error.reproducer.read_text())
    assert [op.name for op in func.ops] == ["add"]
    assert len(func.returns) == 1
    assert error.command is not None
    assert shlex.split(error.command)[-2:] == ["--pass", _Fails.name]


def test_the_replay_runs_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "func @f(%x: f32[3]) {\n  %a = neg %x\n  %b = neg %x\n  return %b\n}\n"
    path = tmp_path / "before.fl"
    path.write_text(text)
    assert main([str(path), "--pass", "dce"]) == 0
    assert [op.name for op in parse_func(capsys.readouterr().out).ops] == ["neg"]


def test_the_replay_names_the_passes_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "before.fl"
    path.write_text("func @f(%x: f32[3]) {\n  return %x\n}\n")
    command = [sys.executable, "-m", "fuseline.debug.reproducer", str(path), "--pass", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "fuse-qk-norm" in done.stderr
    assert pipeline.default_pipeline()
