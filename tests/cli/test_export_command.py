"""`fuseline export`: how inputs are given, and what is told before anything is compiled."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import fuseline
from fuseline.cli import main
from fuseline.errors import BAD_ARGUMENT
from tests.cli.helpers import module_of_user

Print = pytest.CaptureFixture[str]

MODULE = """
import sys
import types
import torch
from torch import nn

class Places(nn.Module):
    def forward(self, x, y, /, scale=2.0):
        return x * scale - y

class Many(nn.Module):
    def forward(self, first, *rest):
        return first - 2 * rest[0] - 3 * rest[1]

class Branch(nn.Module):
    def forward(self, x):
        print("my own", file=sys.stderr)
        return x + 1 if bool(x.sum() > 0) else x - 1

class Inverse(nn.Module):
    def forward(self, x):
        return torch.cholesky_inverse(x)

def places():
    return Places(), ()

def many():
    return Many(), ()

def branch():
    return Branch(), (torch.ones(5),)

def inverse():
    return Inverse(), (torch.eye(5),)

def function():
    return (lambda x, *, y: x - 2 * y), ()

def configured():
    class Configured(nn.Module):
        config = types.SimpleNamespace(use_cache=True)
        def forward(self, x, **others):
            return x if others.get("use_cache", self.config.use_cache) else -x
    return Configured(), {"x": torch.ones(5), "use_cache": False}

def loose():
    class Loose(nn.Module):
        def forward(self, x, **others):
            return x - 2 * others["y"]
    return Loose(), ()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return module_of_user(MODULE, tmp_path, monkeypatch)


def export(module: str, function: str, *arguments: str, inputs: str = "") -> int:
    given = [word for text in inputs.split() for word in ("--input", text)]
    return main(["export", f"{module}:{function}", "-o", "model.fuse", *given, *arguments])


def test_arguments_that_are_taken_by_place(module: str) -> None:
    assert export(module, "places", inputs="y:float32[B=1..8,3] x:float32[B=1..8,3]") == 0
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(fuseline.load("model.fuse")(x, y), x * 2 - y)


@pytest.mark.parametrize(
    "places",
    [
        "-o a.fuse --html a.html",
        "--html=a.html --output=a.fuse",
        "-oa.fuse --htm a.html",
        "--out a.fuse --set html=a.html --set=dump-dir=dump",
        "-o a.fuse --remarks-output a.yaml --sign a.pem",
    ],
)
def test_the_command_that_a_file_keeps_has_no_places_of_other_files(
    module: str, monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    """One build is the same bytes, wherever it is written."""
    kept: list[str] = []

    def check_files(*_: object) -> None:
        """There are no keys."""

    def export_parts(*_: object, command: str, **__: object) -> NoReturn:
        kept.append(command)
        raise BAD_ARGUMENT.error("MODEL", found="enough", expected="no export")

    monkeypatch.setattr("fuseline.exporting.export_parts", export_parts)
    monkeypatch.setattr("fuseline.cli.export._check_files", check_files)
    others = ["--set", "dynamic=false", "--remarks", "cse", "--licence", "MIT 2"]
    words = ["export", f"{module}:inverse", *places.split(), *others]
    monkeypatch.setattr("sys.argv", ["fuseline", *words])
    assert main(words) == 2
    assert kept == [shlex.join(["fuseline", "export", f"{module}:inverse", *others])]


def test_any_number_of_arguments(module: str) -> None:
    """Their order is that of the options."""
    assert (
        export(module, "many", inputs="b:float32[B=1..8] first:float32[B=1..8] a:float32[1]") == 0
    )
    first, one, two = torch.randn(6), torch.randn(6), torch.randn(1)
    found = fuseline.load("model.fuse")(first, one, two)
    torch.testing.assert_close(found, first - 2 * one - 3 * two)


def test_a_function_is_called_by_its_names(module: str) -> None:
    assert export(module, "function", inputs="x:float32[N=1..8] y:float32[N=1..8]") == 0
    x, y = torch.randn(6), torch.randn(6)
    torch.testing.assert_close(fuseline.load("model.fuse")(x=x, y=y), x - 2 * y)


def test_keywords_of_any_name(module: str, capsys: Print) -> None:
    assert export(module, "loose", inputs="x:float32[6] y:float32[6]") == 0
    x, y = torch.randn(6), torch.randn(6)
    torch.testing.assert_close(fuseline.load("model.fuse")(x=x, y=y), x - 2 * y)
    assert export(module, "loose", inputs="x:float32[N=1..8] y:float32[N=1..8]") == 2
    assert "and y, which forward(x, **others) does not name" in capsys.readouterr().err


def test_options_that_the_configuration_has_too(module: str) -> None:
    """torch's export takes no ranges beside a keyword of any name."""
    assert export(module, "configured", inputs="x:float32[N=1..8]") == 0
    x = torch.randn(6)
    assert torch.equal(fuseline.load("model.fuse")(x=x), -x)


@pytest.mark.parametrize(
    ("function", "inputs", "said"),
    [
        ("places", "y:float32[3]", "argument: 'x', expected those of forward(x, y, /, scale=2.0)"),
        ("places", "x:float32[3] z:float32[3]", "forward(x, y, /, scale=2.0)"),
        ("many", "a:float32[3] b:float32[3]", "'first', expected those of forward(first, *rest)"),
        ("branch", "y:float32[3]", "argument: 'x', expected those of forward(x)"),
        ("function", "x:float32[3]", "argument: 'y', expected those of forward(x, *, y)"),
    ],
)
def test_wrong_names(module: str, capsys: Print, function: str, inputs: str, said: str) -> None:
    assert export(module, function, inputs=inputs) == 2
    shown = capsys.readouterr().err
    assert "FL0103 wrong argument --input" in shown
    assert said in shown
    assert "capture" not in shown


def test_only_the_diagnostic_of_what_cannot_be_captured(
    module: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Torch's warnings and its graph so far are for the log; what the model prints is not ours."""
    assert export(module, "branch") == 1
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line != "my own"] == [
        f"loading {module}:branch ...",
        "capture main ...",
        lines[-1],
    ]
    assert lines.count("my own") == 1
    assert lines[-1].startswith("FL1107 cannot export main: found GuardOnDataDependent")


def test_the_log_has_what_torch_said(module: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="fuseline"):
        assert export(module, "branch") == 1
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("torch: ")]
    assert any("torch.ops.aten.gt.Scalar" in text for text in said)


def test_the_operation_without_a_kernel_is_named(module: str, capsys: Print) -> None:
    assert export(module, "inverse", "--strict") == 1
    line = 1 + next(i for i, t in enumerate(MODULE.splitlines()) if "cholesky" in t)
    place = f"aten.cholesky_inverse.default at {module}.py:{line}"
    assert f"no kernel for {place}" in capsys.readouterr().err
    assert export(module, "inverse") == 0
    assert f"by torch    {place}" in capsys.readouterr().out
    assert export(module, "inverse", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["run_by_torch"]
    assert found["operation"] == "aten.cholesky_inverse.default"
    assert found["where"] == f"{module}.py:{line}"
    assert main(["inspect", "model.fuse"]) == 0
    assert "no kernel for aten.cholesky_inverse.default" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("--sign", None, "FL1112 cannot use the key"),
        ("--sign", b"no key", "FL1112 cannot use the key"),
        ("-o", b"", "no directory"),
        ("-o", None, "no plain file"),
    ],
    ids=["no key", "bad key", "below a file", "a directory"],
)
def test_what_cannot_be_written_is_told_at_once(
    module: str,
    tmp_path: Path,
    capsys: Print,
    option: str,
    content: bytes | None,
    said: str,
) -> None:
    place = tmp_path / "place"
    if option == "-o" and content is None:
        place.mkdir()
    elif content is not None:
        place.write_bytes(content)
    below = place / "model.fuse" if content == b"" else place
    before = sorted(tmp_path.rglob("*"))
    assert export(module, "inverse", option, str(below)) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert "loading" not in shown
    assert sorted(tmp_path.rglob("*")) == before
