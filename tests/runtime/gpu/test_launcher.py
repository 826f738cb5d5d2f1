"""What reaches the driver: a stub stands in its place, and writes launches down. No GPU runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.gpu.launch_on_stub import STREAM

pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")

HERE = Path(__file__).parent
PROGRAM = "tests.runtime.gpu.launch_on_stub"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library that calls itself the driver."""
    folder = tmp_path_factory.mktemp("stub")
    source, library = str(HERE / "stub_driver.c"), str(folder / "libcuda.so.1")
    options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-ldl"]
    subprocess.run(["gcc", source, *options, "-o", library], check=True)
    return folder


def run(
    stub: Path, tmp: Path, width: int = 1, *more: str, **variables: str
) -> tuple[dict[str, Any], list[str]]:
    """What the program answered, and what the stub wrote down."""
    record = tmp / "record"
    settings = {"LD_LIBRARY_PATH": str(stub), "STUB_RECORD": str(record), **variables}
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, str(stub / "cache"), str(width), *more],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), record.read_text().splitlines() if record.exists() else []


def test_a_launch_passes_every_argument_as_its_type(stub: Path, tmp_path: Path) -> None:
    answer, record = run(stub, tmp_path, STUB_TYPES="ppilipp")
    first = next(line for line in record if line.startswith("launch"))
    x, y = hex(answer["x"] + 4), hex(answer["y"])
    arguments = f"{x} {y} 7 {2**40 + 3} -5 (nil) (nil)"
    head = f"launch 0x2000 grid 3 2 1 block 128 1 1 shared 65536 stream {hex(STREAM)}"
    assert first == f"{head} {arguments}"


def test_a_kernel_in_cuda_has_blocks_of_its_size_and_no_scratch(stub: Path, tmp_path: Path) -> None:
    """Two null pointers that the driver does not look at lie behind its parameters."""
    answer, record = run(stub, tmp_path, 1, "cuda", STUB_TYPES="ppilipp")
    first = next(line for line in record if line.startswith("launch"))
    x, y = hex(answer["x"] + 4), hex(answer["y"])
    head = f"launch 0x2000 grid 3 2 1 block 160 1 1 shared 0 stream {hex(STREAM)}"
    assert first == f"{head} {x} {y} 7 {2**40 + 3} -5 (nil) (nil)"
    assert "attribute" not in " ".join(record)


def test_a_kernel_is_loaded_once_and_asks_for_its_shared_memory(stub: Path, tmp_path: Path) -> None:
    _, record = run(stub, tmp_path)
    assert record == ["module", "function norm_01", "attribute 8 = 65536"]


def test_a_grid_without_blocks_launches_nothing(stub: Path, tmp_path: Path) -> None:
    _, record = run(stub, tmp_path, STUB_TYPES="pp")
    assert not [line for line in record if "grid 0" in line]


@pytest.mark.parametrize(
    ("call", "status", "code", "said"),
    [
        ("cuInit", 100, "FL1001", "CUDA_ERROR_NO_DEVICE"),
        ("cuModuleLoadData", 209, "FL1002", "CUDA_ERROR_NO_BINARY_FOR_GPU"),
        ("cuFuncSetAttribute", 1, "FL1002", "CUDA_ERROR_INVALID_VALUE"),
        ("cuLaunchKernel", 701, "FL1003", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
    ],
)
def test_what_the_driver_refuses_is_said(
    stub: Path, tmp_path: Path, call: str, status: int, code: str, said: str
) -> None:
    answer, _ = run(stub, tmp_path, STUB_FAIL=f"{call}:{status}")
    assert answer["error"].startswith(code)
    assert said in answer["error"]


def test_a_launch_is_never_cut_into_shares(stub: Path, tmp_path: Path) -> None:
    """Each share would launch the whole of it, from whichever thread has it."""
    answer, record = run(stub, tmp_path, width=4, STUB_TYPES="pp")
    assert answer["error"].startswith("FL1003")
    assert not [line for line in record if line.startswith("launch")]
