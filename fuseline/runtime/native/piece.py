"""A table of launches that the native runner works through, and the tensors it does so on."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from fuseline.errors import INDEX_OUTSIDE, InternalError
from fuseline.runtime.native.structures import (
    DIM,
    REF,
    STEP,
    WIDTH,
    Functions,
    HostStructure,
    Packed,
    TimeStructure,
)

Run = Callable[[int, Sequence["Tensor | None"]], "bool | int"]
"""Runs the piece at an address on the tensors of its slots. True; False if it is running already;
or the number, from 1 on, of a launch that was given an index that is outside."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch, all numbers known.

    Attributes:
        function: address of the kernel, see ``fuseline_abi.h``.
        buffers: slot and byte offset of each; slot -1 is a null pointer.
        dims: the run-time integers.
        width: into how many shares the work is cut, 128 at most; 1 where it is not worth a meeting.
            More shares than threads help where a thread may lose its core: others do what it left.
            With one thread there is one share.
        independent: it reads and writes nothing that a launch since the last dependent one writes,
            and writes nothing that one reads, so it may run at the same time.
        label: for timings.
        where: the place in the user's program.
    """

    function: int
    buffers: tuple[tuple[int, int], ...]
    dims: tuple[int, ...] = ()
    width: int = 1
    independent: bool = False
    label: str = ""
    where: str = ""


@dataclass(frozen=True)
class StepTime:
    """What a launch took on average, in nanoseconds: all its shares together, and the longest."""

    label: str
    busy: float
    wall: float


class Piece:
    """Launches bound to slots. Call it with the tensor or None of each slot, as a list or tuple.

    Not reentrant: a call from a second thread while one is running is an `InternalError`.
    """

    def __init__(
        self,
        functions: Functions,
        run: Run,
        launches: Sequence[Launch],
        *,
        slots: int,
        threads: int,
        sgemm: int,
    ) -> None:
        self.launches = tuple(launches)
        self.slots = slots
        self.threads = threads
        self._functions = functions
        self._run = run
        self._refs = [ref for launch in launches for ref in launch.buffers]
        self._dims = [dim for launch in launches for dim in launch.dims]
        self._address = self._new(sgemm)
        # Not when the interpreter ends: a daemon thread may still be in the middle of the piece.
        weakref.finalize(self, functions.piece_free, self._address).atexit = False

    def __call__(self, tensors: Sequence[Tensor | None]) -> None:
        """Run all launches; slots after the last tensor keep what they have.

        Raises:
            IndexInputError: FL0905, for an index outside what it is an index into.
            TypeError: something is neither a tensor with memory nor None, or no list or tuple.
            ValueError: there are more tensors than slots.
        """
        if len(tensors) > self.slots:
            raise ValueError(f"{len(tensors)} tensors for {self.slots} slots")
        done = self._run(self._address, tensors)
        if done is not True:
            self._failed(done)

    def _failed(self, fault: int) -> NoReturn:
        if not fault:
            raise InternalError("a piece was called while it was running", stage="run")
        launch = self.launches[fault - 1]
        found = f"one given to {launch.label.split(' ')[0]} that is negative or too large"
        raise INDEX_OUTSIDE.error(where=launch.where or None, found=found)

    def bind(self, slot: int, memory: int | Tensor) -> None:
        """Give a slot memory of its own, by address or tensor, which the caller keeps alive."""
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        address = memory if isinstance(memory, int) else memory.data_ptr()
        self._alone(lambda: self._functions.piece_set(self._address, slot, address))

    def rebind(
        self,
        *,
        dims: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        offsets: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> None:
        """Replace numbers of all launches, one after the other; what is not given stays.

        Raises:
            ValueError: there are not as many as there were.
        """
        self.threads = threads or self.threads
        arrays = (
            _packed(DIM, dims, len(self._dims), "dims"),
            _packed(WIDTH, widths, len(self.launches), "widths"),
            _packed(DIM, offsets, len(self._refs), "offsets"),
        )
        self._alone(lambda: self._functions.piece_rebind(self._address, *arrays, self.threads))

    def profile(self, on: bool = True) -> None:
        """Begin to time every launch, or stop; times begin at zero."""
        self._alone(lambda: self._functions.piece_profile(self._address, int(on)))

    def times(self) -> list[StepTime]:
        """What each launch took, on average over the calls since `profile`; empty without any."""
        taken = (TimeStructure * len(self.launches))()
        runs = self._functions.piece_times(self._address, ctypes.byref(taken))
        if not runs:
            return []
        return [
            StepTime(launch.label, time.busy / runs, time.wall / runs)
            for launch, time in zip(self.launches, taken, strict=True)
        ]

    def _new(self, sgemm: int) -> int:
        for slot, _ in self._refs:
            if not -1 <= slot < self.slots:
                raise IndexError(f"slot {slot} of {self.slots}")
        steps: list[int] = []
        buf = dim = 0
        for launch in self.launches:
            steps += [launch.function, buf, dim, launch.width, launch.independent]
            buf += len(launch.buffers)
            dim += len(launch.dims)
        refs = [word for slot, offset in self._refs for word in (offset, slot, 0)]
        host = HostStructure(sgemm)
        address = self._functions.piece_new(
            *(STEP.pack(steps), len(self.launches), REF.pack(refs), len(self._refs)),
            *(DIM.pack(self._dims), len(self._dims)),
            *(self.slots, ctypes.byref(host), self.threads),
        )
        if address is None:
            raise MemoryError
        return address

    def _alone(self, change: Callable[[], None]) -> None:
        if self._functions.piece_begin(self._address):
            raise InternalError("a piece was changed while it was running", stage="run")
        try:
            change()
        finally:
            self._functions.piece_end(self._address)


def _packed(layout: Packed, values: Sequence[int] | None, count: int, name: str) -> bytes | None:
    if values is None:
        return None
    if len(values) != count:
        raise ValueError(f"{len(values)} {name} for a piece that has {count}")
    return layout.pack(values)
