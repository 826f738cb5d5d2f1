"""A failing pass is reported with the IR before it and a command that replays it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fuseline
from fuseline.cli import main
from fuseline.debug.case import Case
from fuseline.debug.reproducer import pass_failure
from fuseline.errors import InternalError
from fuseline.ir.core import Func
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.dce import Dce
from fuseline.passes.manager import PassManager
from fuseline.passes.rewrite import FuncPass, Pass


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes stand for fuseline's own."""
    for each in (_Fails, _Leaves):
        monkeypatch.setattr(each, "__module__", "fuseline.passes")


@dataclass(frozen=True)
class _Fails(FuncPass):
    """Fails after it has begun to edit."""

    often: int = 2

    def run(self, func: Func) -> None:
        func.set_returns([])
        raise RuntimeError("this pass is broken")


@dataclass(frozen=True)
class _Leaves(FuncPass):
    """Leaves a func that is not valid."""

    def run(self, func: Func) -> None:
        func.args.clear()


def _failing_pipeline(*, cache_latents: bool, on_gpu: bool) -> list[Pass]:
    assert not cache_latents
    assert not on_gpu
    return [Dce(), Dce(), _Fails()]


def _double(x: Tensor) -> Tensor:
    return x + x


def test_a_failing_pass_saves_the_func_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert case.pipeline == f"{_Fails.name}{{often=2}}"
    assert case.failed == f"{_Fails.name}: RuntimeError: this pass is broken"
    assert main(["repro", str(error.reproducer)]) == 1, "it fails again"
    func = parse_func(error.reproducer.read_text())
    assert [op.name for op in func.ops] == ["add"]
    assert len(func.returns) == 1
    assert error.command is not None
    words = shlex.split(error.command)
    assert words == [
        *("fuseline", "opt", "-p", f"{_Fails.name}{{often=2}}"),
        *(str(error.reproducer), "--verify-each"),
    ]
    assert main(words[1:]) == 1
    said = capsys.readouterr().err
    assert f"internal error in {_Fails.name}: RuntimeError: this pass is broken" in said
    assert words[-2] not in said, "the replay saves a file of its own"


TEXT = "func @f(%x: f32[3]) {\n  %y = neg %x : f32[3]\n  return %y\n}\n"


@pytest.mark.parametrize("check", [True, False])
def test_of_passes_that_are_equal_the_one_that_failed_is_named(tmp_path: Path, check: bool) -> None:
    """Its replay has what the passes before it left."""
    manager = PassManager([Dce(), _Fails(1), Dce(), _Fails(1)], check=check)
    manager.current = manager.passes[3]
    manager.passes[1] = Dce()
    error = pass_failure(manager, parse_func(TEXT), RuntimeError("why"), tmp_path)
    assert isinstance(error, InternalError)
    assert error.stage == _Fails.name
    assert error.reproducer is not None
    assert error.reproducer == tmp_path / f"before-{_Fails.name}.fl"
    assert print_func(Case.read(error.reproducer).func) == TEXT


@pytest.mark.parametrize("flags", [[], ["--verify-each"]])
def test_the_pass_that_left_invalid_ir_is_named(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.fl"
    file.write_text(TEXT)
    assert main(["opt", str(file), "-p", f"dce,{_Leaves.name},dce", *flags]) == 1
    said = capsys.readouterr().err
    assert f"internal error in {_Leaves.name}: IRError: after {_Leaves.name}: " in said
    (saved,) = [line.split()[1] for line in said.splitlines() if line.startswith("  saved:")]
    assert print_func(Case.read(Path(saved)).func) == TEXT
