"""ONNX models, programs of torch.export and artifacts given to commands; who takes which."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from torch import Tensor, nn

from fuseline import Config, FuselineError, load
from fuseline.cli import main
from fuseline.cli.files import Kind, kind_of
from fuseline.cli.models import load as load_model
from tests.onnx.models import model, node

Print = pytest.CaptureFixture[str]

X = torch.linspace(-2, 2, 12).view(3, 4)
WEIGHT = torch.linspace(-1, 1, 20).view(4, 5)


class Net(nn.Module):
    """A product and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    nodes = [node("MatMul", "x weight", "p"), node("Tanh", "p", "y")]
    made = model(nodes, {"x": X}, ["y"], {"weight": WEIGHT}, shapes={"x": ("n", 4)}, domains=())
    cast("Any", onnx).save(made, path)
    return path


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    dims = ({0: torch.export.Dim("n", min=1, max=16)},)
    with torch.no_grad():
        trace = cast("Any", torch.export.export)
        program = trace(Net(), (X,), dynamic_shapes=dims, strict=False)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def artifact(onnx_file: Path) -> Path:
    path = onnx_file.with_name("net.fuse")
    assert main(["export", str(onnx_file), "-o", str(path), "--json"]) == 0
    return path


def answer(capsys: Print) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.fixture(params=["onnx", "pt2"])
def file(request: pytest.FixtureRequest) -> Path:
    name = {"onnx": "onnx_file", "pt2": "program_file"}[request.param]
    return cast("Path", request.getfixturevalue(name))


def test_run_compares_with_the_model_itself(file: Path, capsys: Print) -> None:
    assert main(["run", str(file), "--runs", "1", "--json"]) == 0
    found = answer(capsys)
    assert found["same"]
    assert found["compile_seconds"] > 0
    assert 0 < found["compiled_error"] <= found["allowed_error"]
    assert found["report"]["kernels"]


def test_explain(file: Path, capsys: Print) -> None:
    assert main(["explain", str(file), "--json"]) == 0
    assert any(kernel["op"] == "linear" for kernel in answer(capsys)["kernels"])


def test_an_onnx_model_is_checked_by_rewrite(onnx_file: Path, capsys: Print) -> None:
    assert main(["explain", str(onnx_file), "--check-numerics", "--json"]) == 0
    records = answer(capsys)["numerics"]
    assert [r["rewrite"] for r in records][-1] == "kernels"
    assert all(r["values"] and r["share"] <= 1 for r in records)


@pytest.mark.slow
def test_explain_for_a_gpu(onnx_file: Path, capsys: Print) -> None:
    with warnings.catch_warnings():
        assert main(["explain", str(onnx_file), "--set", "target=sm_90", "--json"]) == 0
    printed = capsys.readouterr()
    assert "FL1005" in printed.err
    kernels = json.loads(printed.out)["kernels"]
    assert any(kernel["resources"] for kernel in kernels)


def test_export(file: Path, tmp_path: Path, capsys: Print) -> None:
    path = tmp_path / "net.fuse"
    assert main(["export", str(file), "-o", str(path), "--strict", "--json"]) == 0
    assert answer(capsys)["programs"] == ["main"]
    x = torch.linspace(-1, 1, 28).view(7, 4)
    given = load(path)(x)
    found: Tensor = given["y"] if file.suffix == ".onnx" else given
    torch.testing.assert_close(found, torch.tanh(x @ WEIGHT))
    assert main(["run", str(path), "--batch", "2", "--runs", "1", "--json"]) == 0
    assert "float32[2, 5]" in str(answer(capsys)["programs"]["main"])


def test_export_narrows_an_onnx_model(onnx_file: Path, tmp_path: Path, capsys: Print) -> None:
    path = tmp_path / "net.fuse"
    given = ["export", str(onnx_file), "-o", str(path), "--json"]
    assert main([*given, "--input", "x:float32[rows=2..8,4]"]) == 0
    assert load(path).main.program.plan.ranges["rows"] == (2, 8)
    capsys.readouterr()
    assert main([*given, "--input", "x:float32[3,5]"]) == 1
    assert "FL0823" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--decode", "static:8"], "FL0807"),
        (["--dtype", "float16"], "FL0103 wrong argument --dtype"),
    ],
)
def test_what_these_files_decide(
    file: Path, tmp_path: Path, capsys: Print, given: list[str], said: str
) -> None:
    assert main(["export", str(file), "-o", str(tmp_path / "x.fuse"), *given]) > 0
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{"batch": 2}, {"length": 3}, {"inputs": ["x:float32[3,4]"]}])
def test_a_program_has_its_inputs(program_file: Path, given: dict[str, Any]) -> None:
    with pytest.raises(FuselineError, match="FL0103 .*the program decides"):
        load_model(str(program_file), Config(), **given)


@pytest.mark.parametrize(
    ("command", "name", "takers"),
    [
        (["generate", "--prompt", "x"], "onnx_file", "run, explain and export"),
        (["generate", "--prompt", "x"], "program_file", "run, explain and export"),
        (["explain"], "artifact", "run, generate and inspect"),
        (["export", "-o", "x.fuse"], "artifact", "run, generate and inspect"),
        (["inspect"], "onnx_file", "run, explain and export"),
        (["inspect"], "program_file", "run, explain and export"),
    ],
)
def test_a_file_for_other_commands(
    request: pytest.FixtureRequest, capsys: Print, command: list[str], name: str, takers: str
) -> None:
    path = str(request.getfixturevalue(name))
    capsys.readouterr()
    assert main([command[0], path, *command[1:]]) == 1
    said = capsys.readouterr().err
    assert f"FL0810 this command does not take {path}" in said
    assert f"Hint: {takers} take it." in said


def test_kinds_by_content(
    tmp_path: Path, onnx_file: Path, program_file: Path, artifact: Path
) -> None:
    """Under any name, but for what may run any code as it is read: that is told by its name."""
    kinds: dict[Kind, Path] = {"onnx": onnx_file, "fuse": artifact}
    for kind, path in kinds.items():
        other = tmp_path / "file.gguf"
        other.write_bytes(path.read_bytes())
        assert kind_of(other) == kind_of(path) == kind
    for kind in ("onnx", "gguf", "fuse"):
        other = tmp_path / f"program.{kind}"
        other.write_bytes(program_file.read_bytes())
        assert kind_of(other) == kind
    (tmp_path / "file.onnx").write_bytes(b"GGUF" + bytes(40))
    assert kind_of(tmp_path / "file.onnx") == "gguf"


def test_kinds_by_name(tmp_path: Path) -> None:
    """Where the content tells nothing: damaged files, and none at all."""
    for kind in ("gguf", "onnx", "pt2", "fuse"):
        path = tmp_path / f"file.{kind.upper()}"
        assert kind_of(path) == kind
        path.write_bytes(b"PK\3\4" + bytes(40))
        assert kind_of(path) == kind
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("weights/data.pkl", b"")
    for name, content in {"empty": b"", "text": b"some text", "short": b"\x08"}.items():
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) is None
    assert kind_of(tmp_path / "weights.pt") is None
    assert kind_of(tmp_path) is None
    with pytest.raises(FuselineError, match="FL0801 .*found a file of another kind, expected a GG"):
        load_model(str(tmp_path / "text"), Config())


def test_a_damaged_program(
    tmp_path: Path, program_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pt2"
    whole = program_file.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FuselineError, match="FL0811 .*found no archive"):
        load_model(str(path), Config())
    path.write_bytes(whole[:-40])
    with pytest.raises(FuselineError, match="FL0811 .*archive is corrupted"):
        load_model(str(path), Config())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
    with pytest.raises(FuselineError, match=r"FL0811 .*found \w+: "):
        load_model(str(path), Config())
    assert capfd.readouterr().err == ""


def test_a_file_that_is_not_there(onnx_file: Path) -> None:
    said = r"FL0801 .*no such file\. Hint: perhaps .*net\.onnx.* was meant"
    with pytest.raises(FuselineError, match=said):
        load_model(str(onnx_file.with_name("nett.onnx")), Config())


def test_help_says_what_a_program_may_do(capsys: Print) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "reading it can run code" in " ".join(capsys.readouterr().out.split())


def test_a_size_that_no_program_takes_is_refused(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would change nothing."""
    assert main(["run", str(artifact), "--length", "7"]) == 2
    assert f"FL0103 wrong argument --length: found 7 for {artifact}" in capsys.readouterr().err
