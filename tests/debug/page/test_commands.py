"""`--html` of the commands: what their pages hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fuseline.cli import main
from fuseline.debug.page import page as pages
from fuseline.debug.page.data import PageView
from fuseline.debug.page.page import page_at
from tests.cli.helpers import module_of_user

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.RMSNorm(24), nn.Linear(24, 40), nn.SiLU()).eval(), (torch.ones(3, 24),)
"""

IR = """func @f(%x: f32[B, 4], %w: f32[4]) {
  %s = add %x, %x @ "layers.0" "net.py:7"
  %y = rms_norm %s, %w
  return %y
}
"""


@pytest.fixture(autouse=True)
def own_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a process does."""
    torch.compiler.reset()
    monkeypatch.setattr(pages, "_PAGES", type(pages._PAGES)())  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return f"{module_of_user(MODEL, tmp_path, monkeypatch)}:make"


def on_page(path: Path) -> PageView:
    assert path.is_file()
    return page_at(path).view()


@pytest.mark.parametrize("command", ["explain", "run"])
def test_commands_that_run_a_model_take_samples(
    command: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    assert main([command, model, "--html", str(path)]) == 0
    assert f"the page is {path}" in capsys.readouterr().err
    view = on_page(path)
    (program,) = view.programs
    assert view.title == model
    assert all(len(step.seconds) == 10 for step in program.steps)
    assert [len(seconds) for seconds in program.calls.values()] == [10, 10]


@pytest.mark.slow
def test_an_export_has_a_program_for_each_target(model: str, tmp_path: Path) -> None:
    path, output = tmp_path / "report.html", tmp_path / "model.fuse"
    targets = ["--target", "cpu", "--target", "sm_90", "--cpu-isa", "x86-64-v3"]
    assert main(["export", model, "-o", str(output), *targets, "--html", str(path)]) == 0
    one, other = on_page(path).programs
    assert (one.target, other.target) == ("cpu:x86-64-v3", "sm_90")
    assert {k.language for k in one.kernels if k.source} == {"cpp"}
    assert all(".target sm_90" in k.ptx for k in other.kernels if k.source)
    assert any(k.source for k in other.kernels)
    assert main(["run", str(output), "--html", str(path)]) == 2, "its passes have run"


def test_passes_over_a_text_have_a_page_without_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, path = tmp_path / "f.fl", tmp_path / "report.html"
    file.write_text(IR)
    assert main(["opt", str(file), "--html", str(path)]) == 0
    (program,) = on_page(path).programs
    assert [s.pattern for s in program.sites] == ["add_rms_norm"]
    assert (program.steps, program.memory) == ((), None)
    assert program.graphs[0].nodes[0].source == ("net.py:7",)
    assert main(["opt", str(file), "--html", str(tmp_path)]) == 2
    assert "FL0101 invalid value for the option html" in capsys.readouterr().err


def test_the_census_has_no_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--zoo", "--html", "report.html"]) == 2
    assert "--html" in capsys.readouterr().err
