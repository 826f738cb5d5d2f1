"""The processes that measure, on a tiny model: what they write, never how fast it was."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import models
from benchmarks.__main__ import main
from benchmarks.common import AVX2, ROOT, read_json
from benchmarks.micro_experts import Case, apart
from fuseline.testing import assert_same_values


def run(module: str, output: Path, *arguments: str) -> Any:
    """What a module of the package writes."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return read_json(output)


def test_speed_compares_and_keeps_every_sample(tmp_path: Path) -> None:
    arguments = ("--model", "tiny", "--cases", "decode-1", "--seconds", "0.1")
    found = run("speed", tmp_path / "out.json", *arguments, "--without", "torch.compile")
    (case,) = found.values()
    assert set(case["samples_s"]) == {"fuseline", "eager", "read"}
    assert len(case["samples_s"]["fuseline"]) >= 20
    assert case["difference_to_eager"]["fuseline"] < 1e-5
    assert case["stats"]["host steps"] == 0


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("g++") is None, reason="AVX2 is g++'s, on x86-64"
)
def test_nobody_uses_more_than_avx2_where_that_is_the_limit(tmp_path: Path) -> None:
    program = """
import sys, torch
from pathlib import Path
from benchmarks.common import machine
from fuseline.runtime.cache import Cache
from fuseline.runtime.toolchain import find_toolchain
from torch._inductor import config, cpu_vec_isa
features = find_toolchain(Cache(Path(sys.argv[1]))).features
print(torch.backends.cpu.get_cpu_capability(), cpu_vec_isa.pick_vec_isa(), config.cpp.cxx[1])
print([name for name in features if "512" in name], machine()["instructions"])
"""
    (tmp_path / "cache").mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cache")],
        cwd=ROOT,
        env=os.environ | AVX2,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["AVX2 avx2 g++", "[] ['avx2 (all that is used)']"]


@pytest.mark.slow
def test_second_compilation_finds_what_the_first_left(tmp_path: Path) -> None:
    arguments = ("--model", "tiny", "--layers", "1", "--contender", "fuseline")
    arguments += ("--cache", str(tmp_path / "cache"))
    cold, warm = (run("compile_time", tmp_path / name, *arguments) for name in ("cold", "warm"))
    built = cold["stages_s"].pop("build")  # beside the others
    assert built > 0
    assert warm["processor_s"] < cold["processor_s"]
    assert sum(cold["stages_s"].values()) == pytest.approx(cold["seconds"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_counts_planned_buffers(tmp_path: Path) -> None:
    found = run("memory", tmp_path / "out.json", "--model", "tiny", "--contender", "fuseline")
    assert 0 < found["weights"] < found["loaded"] <= found["peak"]
    assert 0 < found["planned"] < 1 << 24


def test_step_does_equal_work_every_time() -> None:
    model = models.load("tiny", "float32")
    step = models.Step.of(model, model, 2)
    with torch.no_grad():
        step.rewind()
        first = step()
        step.rewind()
        again = step()
    assert torch.equal(first, again)
    assert first.shape == (2, 1, 101)
    assert int(step.cache.layers[0].cumulative_length) == models.POSITION + 1


def test_embedding_of_its_own_is_not_read_whole() -> None:
    model = models.load("tiny", "bfloat16")
    total = sum(p.nbytes for p in model.parameters())
    assert total - models.weight_bytes(model) == 101 * 64 * 2


def test_shared_branch_apart_computes_the_same() -> None:
    """What the mixture is compared with is made of other ops, whose attributes may change."""
    case = Case("f32", 3, experts=5, top=2, hidden=16, inner=8, shared=8)
    together, _ = case.op()
    func, op = case.op()
    apart(func, op)
    assert_same_values(together, func)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_run_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    assert main(["--quick", "--output", str(output)]) == 0
    found = read_json(output)
    assert found["complete"] is True
    kinds = [part["kind"] for part in found["parts"].values()]
    assert kinds == ["speed", "compile", "memory", "qk_norm", "mla", "adapters"]
