"""Launches through the stub driver that the dynamic linker finds; a program for the tests.

LD_LIBRARY_PATH=... python -m tests.runtime.gpu.launch_on_stub CACHE WIDTH [cuda]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from unittest import mock

import torch

from fuseline import _torch
from fuseline.errors import FuselineError
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.kernels import DeviceKernels, Launcher
from fuseline.runtime.native import Launch, Runner
from fuseline.runtime.toolchain import find_toolchain

PARAMETERS = ("*bf16", "*fp32", "i32", "i64", "i32", "*i8", "*i8")
"""Of a kernel in Triton; one in CUDA C++ has no scratch pointers behind its arguments."""

STREAM = 0x77
REPEATS, LAUNCHES = 200, 100


def main(folder: str, width: int, *, cuda: bool = False) -> None:
    """Two launches, one of them of no blocks; then many, for their cost. ``width`` is shares."""
    cache = Cache.open(Path(folder))
    toolchain = find_toolchain(cache)
    binary = Binary("norm_01", b"\x7fELF", PARAMETERS, 4, 65536, {})
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

        piece = runner.piece([launch((3, 2, 1)), launch((0, 1, 1))], slots=2, threads=width)
        kernels.enter()
        piece([x, y])
        kernels.leave()
        answer = {"x": x.data_ptr(), "y": y.data_ptr()}
        many = runner.piece([launch((1, 1, 1))] * LAUNCHES, slots=2)
        kernels.enter()
        answer["ns per launch"] = cost(lambda: many([x, y]))
        kernels.leave()
    except FuselineError as error:
        answer["error"] = str(error)
    print(json.dumps(answer))


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
        main(sys.argv[1], int(sys.argv[2]), cuda=sys.argv[3:] == ["cuda"])
