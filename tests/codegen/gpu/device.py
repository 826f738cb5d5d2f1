"""Runs Triton kernels on the GPU at hand, in the configuration that would be chosen for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fuseline.build_gpu import candidate, choose
from fuseline.codegen.gpu.kernel import GpuKernel
from fuseline.codegen.lower import Launch
from fuseline.codegen.targets import Target
from fuseline.placing import target_of
from fuseline.runtime import native
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.kernels import DeviceKernels, Launcher
from fuseline.runtime.native import Runner
from fuseline.runtime.toolchain import find_toolchain


@dataclass
class Device:
    """A GPU, and what builds and launches for it."""

    target: Target
    cache: Cache
    runner: Runner
    launcher: Launcher
    binaries: dict[str, Binary]
    kernels: DeviceKernels

    @classmethod
    def open(cls) -> Device:
        """The current device of torch."""
        device = torch.device("cuda", torch.cuda.current_device())
        target = target_of(device)
        assert isinstance(target, Target), target
        cache = Cache(Path(os.environ["FUSELINE_CACHE_DIR"]))  # that of all tests
        toolchain = find_toolchain(cache)
        launcher = Launcher.open(cache, toolchain)
        binaries: dict[str, Binary] = {}
        kernels = DeviceKernels(binaries, launcher, device, target.name)
        runner = Runner.open(cache, toolchain)
        return cls(target, cache, runner, launcher, binaries, kernels)

    def configure(self, launch: Launch) -> Launch:
        """The launch in the configuration that would be chosen for this GPU."""
        chosen = choose(self.cache, launch, self.target)
        assert not isinstance(chosen, str), chosen
        self.binaries[chosen.binary.symbol] = chosen.binary
        return chosen.launch

    def run(
        self,
        launch: Launch,
        buffers: Sequence[Tensor | None],
        dims: Sequence[int],
        grid: Sequence[int],
    ) -> None:
        """Run a launch on CPU tensors, in place: their memory goes there and back.

        Buffers keep the alignment that they have, up to 256 bytes. A kernel that was not chosen by
        `configure` is built as it is.
        """
        kernel = cast("GpuKernel", launch.kernel)
        if kernel.symbol not in self.binaries:
            made = candidate(self.cache, launch, self.target)
            assert not isinstance(made, str), made
            self.binaries[kernel.symbol] = made.binary
        assert len(kernel.buffers) == len(buffers)
        slots: list[Tensor] = []
        places: list[tuple[int, int]] = []
        known: dict[int, int] = {}
        for buffer in buffers:
            assert buffer is not None, "these kernels have no absent operands"
            storage = buffer.untyped_storage()
            if storage.data_ptr() not in known:
                known[storage.data_ptr()] = len(slots)
                slots.append(torch.tensor([], dtype=torch.uint8).set_(storage))
            places.append((known[storage.data_ptr()], buffer.data_ptr() - storage.data_ptr()))
        there = [slot.cuda() for slot in slots]
        function, packed = self.kernels.call(kernel.symbol, tuple(dims), _three(grid))
        piece = self.runner.piece(
            [native.Launch(function, tuple(places), packed)], slots=len(slots)
        )
        self.kernels.enter()
        piece(there)
        self.kernels.leave()
        torch.cuda.synchronize()
        for here, back in zip(slots, there, strict=True):
            here.copy_(back)


def _three(grid: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = grid
    return x, y, z


@lru_cache(maxsize=1)
def device() -> Device:
    """The one device of this process."""
    return Device.open()
