"""What reaches the driver: a stub stands in its place, and writes launches down. No GPU runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.gpu.launch_on_stub import STREAM

pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library that calls itself the driver."""
    folder = tmp_path_factory.mktemp("stub")
    source, library = str(HERE / "stub_driver.c"), str(folder / "libcuda.so.1")
    options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-ldl"]
    subprocess.run(["gcc", source, *options, "-o", library], check=True)
    return folder


def run(
    stub: Path, tmp: Path, width: int = 1, lanes: Sequence[str] = (), **variables: str
) -> tuple[dict[str, Any], list[str]]:
    """What the program answered, and what the stub wrote down."""
    record = tmp / "record"
    settings = {"LD_LIBRARY_PATH": str(stub), "STUB_RECORD": str(record), **variables}
    program = [sys.executable, "-m", "tests.runtime.gpu.launch_on_stub"]
    done = subprocess.run(
        [*program, str(stub / "cache"), str(width), *lanes],
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


def streams(record: list[str]) -> list[str]:
    """What is done with streams: launches by their number of blocks and their stream."""
    found: list[str] = []
    for line in record:
        words = line.split()
        if words[0] == "launch":
            found.append(f"{words[3]} on {words[words.index('stream') + 1]}")
        elif words[0] in ("record", "wait"):
            found.append(line)
    return found[1:]  # the first launch is that of another test


BRANCHES = ["main", "aside", "aside", "beside", "beside", "main", "aside", "beside"]


def test_branches_run_on_two_streams_that_fork_and_join(stub: Path, tmp_path: Path) -> None:
    _, record = run(stub, tmp_path, lanes=BRANCHES, STUB_TYPES="pp")
    fork = ["record 0x90 on 0x77", "wait on 0x88 for 0x90"]
    join = ["record 0x91 on 0x88", "wait on 0x77 for 0x91"]
    recorded = [
        *("1 on 0x77", *fork, "2 on 0x88", "3 on 0x88", "4 on 0x77", "5 on 0x77"),
        *(*join, "6 on 0x77", *fork, "7 on 0x88", "8 on 0x77", *join),
    ]
    plain = [f"{number} on 0x77" for number in range(1, len(BRANCHES) + 1)]
    assert streams(record) == [*recorded, *plain]
    assert record.count("stream of its own") == 1


def test_without_branches_there_is_no_second_stream(stub: Path, tmp_path: Path) -> None:
    _, record = run(stub, tmp_path, lanes=["main", "beside"], STUB_TYPES="pp")
    assert streams(record) == ["1 on 0x77", "2 on 0x77"] * 2
    assert not [line for line in record if line.startswith("stream")]


@pytest.mark.parametrize("call", ["cuEventRecord", "cuStreamWaitEvent"])
def test_a_fork_that_the_driver_refuses_is_said(stub: Path, tmp_path: Path, call: str) -> None:
    answer, record = run(stub, tmp_path, lanes=BRANCHES, STUB_TYPES="pp", STUB_FAIL=f"{call}:1")
    assert answer["error"].startswith("FL1003")
    assert [line for line in streams(record) if " on 0x88" in line and line[0].isdigit()] == []
