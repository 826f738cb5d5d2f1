"""The scripts beside the kernels of a dump: what they hold, and what running one tells."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.assemble import askew_arguments, assemble, form_of
from fuseline.codegen import lowerings
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import TARGETS
from fuseline.header import Head, kind_of
from fuseline.ir.core import Func
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.one_kernel.script import NAME, op_of, script
from fuseline.one_kernel.trial import Alone
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.runtime.gpu.cuda_build import has_nvrtc
from tests.debug.test_round_trip import prefill, step
from tests.passes.test_raise_experts_models import MODELS

MOST = 1 << 30
"""Kernels that count further are for more memory than tests have."""

assert lowerings.__all__, "importing the module registers the lowerings"

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


def given_to(text: str) -> dict[str, Any]:
    """What a script gives to `main`, and the rest of its names."""
    names: dict[str, Any] = {"__name__": "a_script"}
    exec(compile(text, "a_script.py", "exec"), names)
    return names


def alike(func: Func, target: str) -> set[str]:
    """Every kernel of a func comes back from its script: the same symbols from the op alone."""
    PassManager(default_pipeline()).run(func)
    layouts = LayoutMap(func)
    backend = TARGETS[target].backend
    if backend == "cuda":
        layouts.askew = askew_arguments(func)
    done = assemble(func, layouts, emit(func, layouts, backend))
    families: set[str] = set()
    for symbol, (op, *_) in done.ops.items():
        head = Head(symbol, "some", 1, (form_of(op),), ())
        names = given_to(script(head, op, layouts, target=target))
        alone = Alone.of(symbol, TARGETS[target], *op_of(names["OP"], names["MEMORY"]), {})
        if not any(
            n.when and n.when[1] > MOST for n in alone.launches if n.kernel.symbol == symbol
        ):
            assert symbol in alone.running(alone.sizes({}))
        families.add(alone.kernels[symbol].family)
    return families


@pytest.mark.parametrize("target", ["cpu", "sm_90"])
def test_a_script_has_all_that_a_kernel_depends_on(target: str) -> None:
    found = alike(step("qwen3"), target)
    assert {"qk_norm_rope", "index_write"} & found
    assert alike(prefill("deepseek_v3"), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "sm_90"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_scripts_of_many_models_have_it_too(name: str, target: str) -> None:
    assert alike(prefill(name, torch.bfloat16), target)


class Net(nn.Module):
    """A norm, a product for any number of rows, and a cache that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.RMSNorm(24), nn.Linear(24, 40)
        self.cache: Tensor
        self.register_buffer("cache", torch.zeros(9, 40))

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        y = torch.tanh(self.up(self.norm(x)))
        self.cache.index_copy_(0, at, y)
        return y + self.cache.sum()


def dumped(folder: Path) -> Path:
    """The folder of the kernels of a model that was compiled with a dump."""
    compiled = fuseline.compile(Net(), dump_dir=folder)
    with torch.no_grad():
        compiled(torch.randn(5, 24), torch.arange(5))
    (kernels,) = folder.glob("*/kernels")
    return kernels


@dataclass
class Runner:
    """Runs scripts in this process."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, path: Path, *words: str) -> tuple[object, Any, str]:
        """The status of a script, its answer as JSON, and what it said beside."""
        self.monkeypatch.setattr(sys, "argv", [str(path), "--json", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        said = self.capsys.readouterr()
        return ended.value.code, json.loads(said.out or "null"), said.err


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


def test_a_kernel_is_built_run_checked_and_timed_by_the_source_beside(
    tmp_path: Path, ran: Runner
) -> None:
    folder = dumped(tmp_path)
    sources = {p.name for p in folder.glob("*.cpp")}
    assert {p.name.replace(".run.py", ".cpp") for p in folder.glob("*.run.py")} == sources
    (path,) = folder.glob("row_norm*.run.py")
    status, found, said = ran(path, "--runs", "5")
    assert status == 0, said
    assert found["op"] == "rms_norm"
    assert found["good"]
    assert found["bytes"] == 4 * (5 * 24 * 2 + 24)
    assert all(t["median_s"] > 0 and t["runs"] == 5 for t in found["times"].values())
    assert found["floor_s"] > 0
    source = path.with_name(path.name.replace(".run.py", ".cpp"))
    text = source.read_text()
    wrong = re.sub(r"1\.0f /|1\.f /|/ sqrt", lambda m: m[0].replace("1", "2"), text, count=1)
    assert wrong != text
    source.write_text(wrong)
    status, found, said = ran(path, "--no-time")
    assert status == 1
    assert not found["good"]
    assert found["times"] == {}
    source.write_text(text.replace("{", "{ no C++", 1))
    status, found, said = ran(path)
    assert status == 1
    assert "FL0703" in said


def test_what_is_written_in_place_is_checked(tmp_path: Path, ran: Runner) -> None:
    folder = dumped(tmp_path)
    (path,) = folder.glob("index_write*.run.py")
    status, found, said = ran(path, "--no-time", "--seed", "3")
    assert status == 0, said
    assert [each["type"] for each in found["results"]] == ["buffer<f32[9, 40]>"]


def test_a_script_says_what_it_cannot_do(tmp_path: Path, ran: Runner) -> None:
    folder = dumped(tmp_path)
    (path,) = folder.glob("row_norm*.run.py")
    status, _, said = ran(path, "--size", "rows=4")
    assert status == 2
    assert "no size is called rows; there are: none" in said
    assert ran(path, "--size", "rows")[0] == 2
    text = path.read_text()
    path.write_text(text.replace("eps = ", "eps = 1", 1))
    status, _, said = ran(path)
    assert status == 1
    assert "the kernels of rms_norm are others in this version" in said
    alone = tmp_path / "alone" / path.name
    alone.parent.mkdir()
    alone.write_text(text)
    status, _, said = ran(alone)
    assert status == 1
    assert "does not lie beside the script" in said


def written(folder: Path, text: str, family: str) -> Path:
    """The script of the kernel of a family that a func has for a GPU, and all sources beside."""
    func = parse_func(text)
    layouts = LayoutMap(func)
    emitted = emit(func, layouts, "cuda")
    launches = [each for item in emitted for n in item.launches for each in (n, *n.others)]
    kernel = next(n.kernel for n in launches if n.kernel.family == family)
    source = kernel.render()
    (folder / f"{kernel.symbol}.{kind_of(source)}").write_text(source)
    (op,) = func.ops
    head = Head(kernel.symbol, family, 1, (form_of(op),), ())
    path = folder / NAME.format(symbol=kernel.symbol)
    path.write_text(script(head, op, layouts, target="sm_90"))
    return path


NORM = """func @f(%x: bf16[S, 64], %w: bf16[64]) {
  %y = rms_norm %x, %w {eps = 1e-06}
  return %y
}"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it runs on the GPU")
def test_without_a_gpu_triton_interprets(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    path = written(tmp_path, NORM, "row_norm")
    command = [sys.executable, str(path), "--json", "--size", "S=5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["good"]
    assert found["sizes"] == {"S": 5}
    assert (found["times"], found["floor_s"]) == ({}, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it runs on the GPU")
@pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed")
def test_without_a_gpu_a_kernel_in_cuda_is_compiled(tmp_path: Path, ran: Runner) -> None:
    path = written(tmp_path, NORM, "row_norm_cuda")
    status, found, said = ran(path)
    assert status == 0, said
    resources = found["kernels"][path.name.partition(".")[0]]
    assert not found["ran"]
    assert resources["registers"] > 0
    assert resources["spills"] == 0
