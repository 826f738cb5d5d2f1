"""The kernels of a plan on one GPU: loaded when first needed, launched by the native runner."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache as memo
from pathlib import Path

import torch

from fuseline import _torch, errors
from fuseline.runtime import native
from fuseline.runtime.build import KernelSource, Library, build_piece, find_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import driver
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.driver import Function, SideStream
from fuseline.runtime.kernels import Grid
from fuseline.runtime.toolchain import Toolchain

_ABI = "fuseline_abi.h"

MOST_BLOCKS = (2**31 - 1, 65535, 65535)
"""Blocks that the axes of a grid take, on every GPU."""

MOST_COUNTED = 2**31 - 2**16
"""What an integer of 32 bits may be: the last block counts a little further than there is."""


@dataclass(frozen=True, eq=False)
class Launcher:
    """The native function that launches kernels; it is the same for all of them.

    Attributes:
        address: of ``fl_gpu_launch``, a kernel for the native runner.
        enter: takes the context and the stream that this thread's launches go to, and for branches
            another stream with two events, or zeros.
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
        return cls.of(cls.build(cache, toolchain))

    @classmethod
    def of(cls, library: Library) -> Launcher:
        """Its library, connected with the driver.

        Raises:
            BuildError: FL0705, where it is another library.
            DeviceError: FL1001, without a driver.

        """
        pointer = ctypes.c_void_p
        five, six = (ctypes.PYFUNCTYPE(None, *[pointer] * n) for n in (5, 6))
        six(library.address("fl_gpu_connect"))(*driver.launcher_addresses())
        return cls(
            library.address("fl_gpu_launch"),
            five(library.address("fl_gpu_enter")),
            ctypes.PYFUNCTYPE(ctypes.c_int)(library.address("fl_gpu_leave")),
        )

    @staticmethod
    def build(cache: Cache, toolchain: Toolchain) -> Library:
        """Have it in the cache; that needs no driver. It is built for every processor of this kind
        of machine, so that the cache serves one that has another, and no compiler.

        Raises:
            BuildError: it cannot be built or loaded.

        """
        return _library(cache, toolchain.portable)

    @staticmethod
    def is_in(cache: Cache, toolchain: Toolchain) -> bool:
        """Whether `build` needs no compiler.

        Raises:
            BuildError: FL0705, where the system does not load what is there.

        """
        return find_piece(cache, toolchain.portable, [_source()]) is not None


@memo
def _library(cache: Cache, toolchain: Toolchain) -> Library:
    return build_piece(cache, toolchain, [_source()])


def _source() -> KernelSource:
    source = (Path(__file__).parent / "launcher.cpp").read_text()
    header = (Path(native.__file__).parent / _ABI).read_text()
    return KernelSource("fl_gpu_launch", source, {_ABI: header})


@dataclass
class DeviceKernels:
    """The binaries of a plan for one device.

    Attributes:
        binaries: by symbol.
        launcher: what launches them.
        device: with its number.
        target: what the binaries were made for.
        branches: record independent branches on a stream of their own. Outside of a recording all
            launches go to one stream: there it is the host that they wait for, and events are more
            to wait for.
        early: launch what waits itself for the kernel ahead of it before that has ended.
    """

    binaries: Mapping[str, Binary]
    launcher: Launcher
    device: torch.device
    target: str
    branches: bool = True
    early: bool = True
    _side: SideStream | None = None
    _loaded: dict[str, Function] = field(default_factory=dict[str, Function])
    _last: torch.cuda.Stream | None = None

    def call(
        self, symbol: str, dims: tuple[int, ...], grid: Grid, turn: int = 0
    ) -> tuple[int, tuple[int, ...]]:
        """The launcher's address, and the integers that it takes; see ``launcher.cpp``.

        Raises:
            DeviceError: FL1002, if the kernel cannot be loaded; FL1009, if sizes pass its limits.

        """
        function = self._loaded.get(symbol)
        if function is None:
            function = driver.load(self.binaries[symbol], self.device.index, self.target)
            self._loaded[symbol] = function
        if found := _beyond(function, dims, grid):
            raise errors.TOO_LARGE.error(symbol, found=found)
        if turn and self.branches and self._side is None:
            self._side = SideStream.on(self.device.index)
        early = self.early and function.waits
        return self.launcher.address, packed(function, dims, grid, turn, early=early)

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
        side, other = self._side, (0, 0, 0)
        if side is not None and torch.cuda.is_current_stream_capturing():
            other = (side.stream, side.forked, side.joined)
        self.launcher.enter(context, _torch.current_stream(self.device), *other)

    def leave(self) -> None:
        """Raise what the driver said of the launches.

        Raises:
            DeviceError: FL1003, if it refused one.

        """
        if status := self.launcher.leave():
            raise driver.failed(status)


def _integers(function: Function) -> list[str]:
    """The types of the arguments that are no pointers."""
    return [t for t in function.parameters if not t.startswith("*")]


def _beyond(function: Function, dims: tuple[int, ...], grid: Grid) -> str:
    """What of a launch is more than the kernel or the GPU can count, empty where nothing is."""
    for axis, blocks, most in zip("xyz", grid, MOST_BLOCKS, strict=True):
        if blocks > most:
            return f"{blocks} blocks along {axis} of the grid, at most {most}"
    for kind, value in zip(_integers(function), dims, strict=True):
        if kind == "i32" and abs(value) > MOST_COUNTED:
            return f"a size of {value}, at most {MOST_COUNTED}"
    return ""


def packed(
    function: Function, dims: tuple[int, ...], grid: Grid, turn: int = 0, *, early: bool = False
) -> tuple[int, ...]:
    """The integers that ``fl_gpu_launch`` takes."""
    integers = _integers(function)
    buffers = len(function.parameters) - len(integers)
    assert len(integers) == len(dims), "a launch gives every integer"
    wide = sum(1 << i for i, kind in enumerate(integers) if kind == "i64")
    head = (function.handle, *grid, function.threads, function.shared_memory)
    return (*head, buffers, len(dims), wide, turn, int(early), *dims)
