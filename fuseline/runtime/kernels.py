"""The kernels that the native steps of a plan call, and the device that they run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

Grid = tuple[int, int, int]


class Kernels(Protocol):
    """What a program needs to know of its kernels."""

    @property
    def device(self) -> torch.device:
        """Where the program's memory is."""
        ...

    def call(
        self, symbol: str, dims: tuple[int, ...], grid: Grid, turn: int = 0
    ) -> tuple[int, tuple[int, ...]]:
        """The address and the integers by which the native runner launches a kernel.

        ``turn`` is what the launch does with the streams of a device; see `fuseline.runtime.lanes`.
        """
        ...

    def follow(self) -> None:
        """Have what is done next on the device wait for the last call, if that was elsewhere."""

    def enter(self) -> None:
        """Make launches of this thread go where torch's own go now."""

    def leave(self) -> None:
        """Look whether the launches since `enter` were taken.

        Raises:
            DeviceError: one was not.

        """


@dataclass(frozen=True)
class HostKernels:
    """Kernels in the memory of this process, by address."""

    addresses: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def call(
        self, symbol: str, dims: tuple[int, ...], grid: Grid, turn: int = 0
    ) -> tuple[int, tuple[int, ...]]:
        """The kernel's own address, and its dims."""
        return self.addresses[symbol], dims

    def follow(self) -> None:
        """Nothing: a call has ended when it returns."""

    def enter(self) -> None:
        """Nothing: kernels run where they are called."""

    def leave(self) -> None:
        """Nothing: a kernel at fault tells the piece."""
