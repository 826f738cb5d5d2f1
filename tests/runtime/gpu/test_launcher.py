"""What reaches the driver: a stub stands in its place, and writes launches down. No GPU runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fuseline.errors import DeviceError
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.driver import Function
from fuseline.runtime.gpu.kernels import MOST_BLOCKS, MOST_COUNTED, DeviceKernels
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
    stub: Path,
    tmp: Path,
    width: int = 1,
    *more: str,
    cache: Path | None = None,
    **variables: str,
) -> tuple[dict[str, Any], list[str]]:
    """What the program answered, and what the stub wrote down."""
    folder = str(cache or stub / "cache")
    record = tmp / "record"
    settings = {"LD_LIBRARY_PATH": str(stub), "STUB_RECORD": str(record), **variables}
    program = [sys.executable, "-m", PROGRAM]
    done = subprocess.run(
        [*program, folder, str(width), *more],
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


def test_the_largest_grid_arrives_whole(stub: Path, tmp_path: Path) -> None:
    _, record = run(stub, tmp_path, STUB_TYPES="pp")
    assert [line for line in record if "grid 2147483647 65535 65535 " in line]


def test_what_is_too_large_is_refused_before_the_driver_has_it() -> None:
    """The driver would refuse such a grid without its name; an integer would be cut off."""
    function = Function(1, 128, 0, ("*bf16", "i32", "i64", "*i8", "*i8"), None)
    device = torch.device("cuda", 0)
    kernels = DeviceKernels({}, mock.Mock(address=5), device, "sm_90", _loaded={"norm": function})
    assert kernels.call("norm", (MOST_COUNTED, 2**40), MOST_BLOCKS)[0] == 5
    with pytest.raises(DeviceError, match="FL1009.*norm: found a size of 2147483648"):
        kernels.call("norm", (2**31, 0), (1, 1, 1))
    with pytest.raises(DeviceError, match="65536 blocks along y of the grid, at most 65535"):
        kernels.call("norm", (1, 0), (1, 65536, 1))


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


def test_a_cache_of_another_machine_serves_one_without_a_compiler(
    stub: Path, tmp_path: Path
) -> None:
    """That has another processor: nothing that the launcher needs is built for the one here."""
    filled, _ = run(stub, tmp_path)
    assert filled["compiler"]
    shutil.copytree(stub / "cache", tmp_path / "moved")
    as_from_another_processor(Cache.open(tmp_path / "moved"))
    answer, record = run(stub, tmp_path, cache=tmp_path / "moved", PATH=str(tmp_path / "empty"))
    assert (answer["compiler"], answer["built"]) == ([], 0)
    assert record == ["module", "function norm_01", "attribute 8 = 65536"]


def as_from_another_processor(cache: Cache) -> None:
    """Put an entry of the compiler for an unknown processor in the place of that for this one."""
    (mine,) = [entry for entry in cache.entries() if entry.kind == "toolchain"]
    found = mine.file("probe.json").read_text()
    shutil.rmtree(mine.path)

    def write(folder: Path) -> None:
        (folder / "probe.json").write_text(found)

    cache.get_or_build("toolchain", {**mine.factors, "processor": "0" * 16}, write)


def streams(record: list[str]) -> list[str]:
    """What is done with streams: launches by their number of blocks and their stream."""
    found: list[str] = []
    for line in record:
        words = line.split()
        if words[0] == "launch":
            found.append(f"{words[3]} on {words[words.index('stream') + 1]}")
        elif words[0] in ("record", "wait"):
            found.append(line)
    return found[2:]  # the first launches are those of another test


def early(record: list[str]) -> list[str]:
    """The launches that begin before the kernel ahead of them has ended, by their blocks."""
    marks = [i for i, line in enumerate(record) if line == "attribute of launch 6 = 1"]
    return [record[i + 1].split()[3] for i in marks]


@pytest.mark.parametrize(
    ("lanes", "recorded"),
    [
        (["main", "main", "aside", "beside", "beside", "main", "main"], ["2", "4", "5", "7"]),
        (["aside", "beside", "beside", "beside"], ["3"]),
        (["main", "aside", "beside", "empty-main", "main"], ["3"]),
    ],
    ids=["branches", "a branch at first", "nothing behind a join"],
)
def test_what_waits_itself_begins_behind_our_own_kernels(
    lanes: list[str], recorded: list[str], stub: Path, tmp_path: Path
) -> None:
    """Not behind what torch has started, nor behind an event: both are there before ours."""
    _, record = run(stub, tmp_path, 1, "waits", *lanes, STUB_TYPES="pp")
    launched = [str(i) for i, lane in enumerate(lanes, 1) if not lane.startswith("empty")]
    assert early(record) == ["2147483647", *recorded, *launched[1:]]


def test_what_does_not_wait_begins_when_all_is_done(stub: Path, tmp_path: Path) -> None:
    _, record = run(stub, tmp_path, 1, "main", "main", STUB_TYPES="pp")
    assert not early(record)


BRANCHES = ["main", "aside", "aside", "beside", "beside", "main", "aside", "beside"]


def test_branches_run_on_two_streams_that_fork_and_join(stub: Path, tmp_path: Path) -> None:
    _, record = run(stub, tmp_path, 1, *BRANCHES, STUB_TYPES="pp")
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
    _, record = run(stub, tmp_path, 1, "main", "beside", STUB_TYPES="pp")
    assert streams(record) == ["1 on 0x77", "2 on 0x77"] * 2
    assert not [line for line in record if line.startswith("stream")]


@pytest.mark.parametrize("call", ["cuEventRecord", "cuStreamWaitEvent"])
def test_a_fork_that_the_driver_refuses_is_said(stub: Path, tmp_path: Path, call: str) -> None:
    answer, record = run(stub, tmp_path, 1, *BRANCHES, STUB_TYPES="pp", STUB_FAIL=f"{call}:1")
    assert answer["error"].startswith("FL1003")
    assert [line for line in streams(record) if " on 0x88" in line and line[0].isdigit()] == []
