"""``fuseline export --format onnx``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from fuseline.cli import main
from fuseline.frontend.onnx import import_onnx

MODULE = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.RMSNorm(48, eps=1e-6), nn.Linear(48, 64), nn.SiLU())
    return model.eval(), (torch.ones(5, 48),)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that makes a model, on the path."""
    (tmp_path / "a_module_of_this_test.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_a_function_becomes_onnx(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = module / "model.onnx"
    words = ["export", "a_module_of_this_test:make", "-o", str(path), "--format", "onnx"]
    shape = "input:float32[B=1..64,48]"
    assert main([*words, "--input", shape, "--opset", "24", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["operators"] == {"Gemm": 1, "RMSNormalization": 1, "Swish": 1}
    assert told["functions"] == {}
    assert (told["opset"], told["weights"]) == (24, None)
    program = import_onnx(path)
    assert list(program.func.symbols) == ["B"]
    (y,) = program.run({"input": torch.ones(7, 48)}).values()
    assert y.shape == (7, 64)
    assert main([*words, "--weights", "external"]) == 0
    told = capsys.readouterr().out
    assert "1 RMSNormalization" in told
    assert "by onnx.checker, operators of version 23" in told
    assert ".data, " in told


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--format", "onnx", "--target", "cpu"], "--target"),
        (["--format", "onnx", "--decode", "static:8"], "--decode"),
        (["--format", "onnx", "--cpu-isa", "native"], "--cpu-isa"),
        (["--format", "onnx", "--strict"], "--strict"),
        (["--opset", "23"], "--opset"),
        (["--dense-experts"], "--dense-experts"),
    ],
)
def test_options_of_the_other_format(
    module: Path, options: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "a_module_of_this_test:make", "-o", str(module / "m"), *options]
    assert main(words) == 2
    assert f"FL0103 wrong argument {name}" in capsys.readouterr().err


def test_what_cannot_be_written_is_told_before_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--format", "onnx", "-o", str(tmp_path / "m")]
    assert main(["export", "no_such:model", *words, "--opset", "1000"]) == 2
    assert "FL0101 invalid value for the option opset" in capsys.readouterr().err
    assert main(["export", "no_such.onnx", *words]) == 1
    assert "an ONNX model, which is in this format already" in capsys.readouterr().err
