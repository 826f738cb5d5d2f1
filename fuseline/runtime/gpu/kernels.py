"""The kernels of a plan on one GPU: loaded when first needed, launched by the native runner."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache as memo
from pathlib import Path

import torch

from fuseline import _torch
from fuseline.runtime import native
from fuseline.runtime.build import KernelSource, Library, build_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import driver
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.driver import Function
from fuseline.runtime.kernels import Grid
from fuseline.runtime.toolchain import Toolchain

_ABI = "fuseline_abi.h"


@dataclass(frozen=True, eq=False)
class Launcher:
    """The native function that launches kernels; it is the same for all of them.

    Attributes:
        address: of ``fl_gpu_launch``, a kernel for the native runner.
        enter: takes the context and the stream that this thread's launches go to.
        leave: gives the driver's word on them, 0 for success.
    """

    address: int
    enter: ctypes._CFunctionType  # pyright: ignore[reportPrivateUsage]
    leave: ctypes._CFunctionType  # pyright: ignore[reportPrivateUsage]

    @classmethod
    def open(cls, cache: Cache, toolchain: Toolchain) -> Launcher:
        """Build it, unless it is in the cache, and connect it with the driver.

        Raises:
            BuildError: it cannot be built or loaded.
            DeviceError: FL1001, without a driver.

        """
        library = _library(cache, toolchain)
        pointer = ctypes.c_void_p
        connect = ctypes.PYFUNCTYPE(None, pointer, pointer, pointer)
        connect(library.address("fl_gpu_connect"))(*driver.launcher_addresses())
        return cls(
            library.address("fl_gpu_launch"),
            ctypes.PYFUNCTYPE(None, pointer, pointer)(library.address("fl_gpu_enter")),
            ctypes.PYFUNCTYPE(ctypes.c_int)(library.address("fl_gpu_leave")),
        )


@memo
def _library(cache: Cache, toolchain: Toolchain) -> Library:
    source = (Path(__file__).parent / "launcher.cpp").read_text()
    header = (Path(native.__file__).parent / _ABI).read_text()
    return build_piece(cache, toolchain, [KernelSource("fl_gpu_launch", source, {_ABI: header})])


@dataclass
class DeviceKernels:
    """The binaries of a plan for one device.

    Attributes:
        binaries: by symbol.
        launcher: what launches them.
        device: with its number.
        target: what the binaries were made for.
    """

    binaries: Mapping[str, Binary]
    launcher: Launcher
    device: torch.device
    target: str
    _loaded: dict[str, Function] = field(default_factory=dict[str, Function])
    _last: torch.cuda.Stream | None = None

    def call(self, symbol: str, dims: tuple[int, ...], grid: Grid) -> tuple[int, tuple[int, ...]]:
        """The launcher's address, and the integers that it takes; see ``launcher.cpp``.

        Raises:
            DeviceError: FL1002, if the kernel cannot be loaded.

        """
        function = self._loaded.get(symbol)
        if function is None:
            function = driver.load(self.binaries[symbol], self.device.index, self.target)
            self._loaded[symbol] = function
        return self.launcher.address, packed(function, dims, grid)

    def follow(self) -> None:
        """Make torch's current stream wait for the one that the last call went to: both use the
        program's own memory. A capture of the caller's cannot wait for what is outside of it.
        """
        if torch.cuda.is_current_stream_capturing():
            return
        stream = torch.cuda.current_stream(self.device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream

    def enter(self) -> None:
        """Send this thread's launches to torch's current stream of the device."""
        context = driver.primary_context(self.device.index)
        self.launcher.enter(context, _torch.current_stream(self.device))

    def leave(self) -> None:
        """Raise what the driver said of the launches.

        Raises:
            DeviceError: FL1003, if it refused one.

        """
        if status := self.launcher.leave():
            raise driver.failed(status)


def packed(function: Function, dims: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """The integers that ``fl_gpu_launch`` takes."""
    integers = [t for t in function.parameters if not t.startswith("*")]
    buffers = len(function.parameters) - len(integers)
    assert len(integers) == len(dims), "a launch gives every integer"
    wide = sum(1 << i for i, kind in enumerate(integers) if kind == "i64")
    head = (function.handle, *grid, function.threads, function.shared_memory)
    return (*head, buffers, len(dims), wide, *dims)
