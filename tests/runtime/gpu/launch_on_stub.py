"""Launches through the stub driver that the dynamic linker finds; a program for the tests.

LD_LIBRARY_PATH=... python -m tests.runtime.gpu.launch_on_stub CACHE WIDTH [cuda | [waits] LANE ...]

A lane is as in `fuseline.runtime.lanes`, with `empty-` before it for a launch of no blocks.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import cast
from unittest import mock

import torch

from fuseline import _torch
from fuseline.build import Tools
from fuseline.config import Config
from fuseline.errors import FuselineError
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.kernels import MOST_BLOCKS, DeviceKernels, Launcher
from fuseline.runtime.lanes import Lane, turns
from fuseline.runtime.native import Launch, Runner

PARAMETERS = ("*bf16", "*fp32", "i32", "i64", "i32", "*i8", "*i8")
"""Of a kernel in Triton; one in CUDA C++ has no scratch pointers behind its arguments."""

STREAM = 0x77
REPEATS, LAUNCHES = 200, 100


def main(
    folder: str, width: int, lanes: list[str], *, cuda: bool = False, waits: bool = False
) -> None:
    """Launches of some blocks, of none and of the most; then one for each lane, or many, for their
    cost. ``width`` is shares.
    """
    tools = Tools.find(Config(cache_dir=Path(folder)))
    cache, toolchain = tools.cache, tools.host
    assert toolchain is not None, tools.missing
    binary = Binary("norm_01", b"\x7fELF", PARAMETERS, 4, 65536, {}, waits=waits)
    if cuda:
        binary = Binary("norm_01", b"\x7fELF", PARAMETERS[:-2], 5, 0, {}, scratch_pointers=0)
    answer: dict[str, object] = {}
    try:
        launcher = Launcher.open(cache, toolchain)
        kernels = DeviceKernels({"norm_01": binary}, launcher, torch.device("cuda", 0), "sm_90")
        runner = Runner.open(cache, toolchain)
        x, y = torch.zeros(8, dtype=torch.bfloat16), torch.zeros(8)
        dims = (7, 2**40 + 3, -5)

        def launch(grid: tuple[int, int, int]) -> Launch:
            function, packed = kernels.call("norm_01", dims, grid)
            return Launch(function, ((0, 4), (1, 0)), packed, width)

        grids = [(3, 2, 1), (0, 1, 1), MOST_BLOCKS]
        piece = runner.piece([launch(grid) for grid in grids], slots=2, threads=width)
        kernels.enter()
        piece([x, y])
        kernels.leave()
        answer = {"x": x.data_ptr(), "y": y.data_ptr(), "compiler": toolchain.command}
        if lanes:
            branch(kernels, runner, lanes, [x, y])
            print(json.dumps(answer))
            return
        many = runner.piece([launch((1, 1, 1))] * LAUNCHES, slots=2)
        kernels.enter()
        answer["ns per launch"] = cost(lambda: many([x, y]))
        kernels.leave()
        answer["built"] = cache.stats.built
    except FuselineError as error:
        answer["error"] = str(error)
    print(json.dumps(answer))


def branch(
    kernels: DeviceKernels, runner: Runner, lanes: list[str], tensors: list[torch.Tensor]
) -> None:
    """A launch in each lane, the first of one block, the next of two, and of none in one that is
    ``empty``: while recording, and not.
    """
    launches: list[Launch] = []
    names = cast("list[Lane]", [lane.removeprefix("empty-") for lane in lanes])
    for number, turn in enumerate(turns(names), 1):
        blocks = 0 if lanes[number - 1].startswith("empty-") else number
        function, packed = kernels.call("norm_01", (7, 1, 1), (blocks, 1, 1), turn)
        launches.append(Launch(function, ((0, 0), (1, 0)), packed))
    piece = runner.piece(launches, slots=2)
    for recording in (True, False):
        with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=recording):
            kernels.enter()
            piece(tensors)
            kernels.leave()


def cost(run: object) -> float:
    """Nanoseconds of a launch, at the best of many calls."""
    assert callable(run)
    taken: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter_ns()
        run()
        taken.append(time.perf_counter_ns() - start)
    return min(taken) / LAUNCHES


if __name__ == "__main__":
    with mock.patch.object(_torch, "current_stream", return_value=STREAM):
        more = sys.argv[3:]
        cuda, waits = more == ["cuda"], more[:1] == ["waits"]
        lanes = [] if cuda else more[waits:]
        main(sys.argv[1], int(sys.argv[2]), lanes, cuda=cuda, waits=waits)
