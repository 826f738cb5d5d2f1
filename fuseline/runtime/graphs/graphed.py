"""Runs a program from recordings, one set for each set of sizes."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from fuseline import errors
from fuseline.runtime.executor import Bound, BoundHost, Program, Segment, Slots
from fuseline.runtime.fork import renew_in_children
from fuseline.runtime.graphs.recorder import NotRecordable, Recorder, Recording, first_line
from fuseline.runtime.memory import copy_into, copy_of, like

log = logging.getLogger(__name__)

Mode: TypeAlias = Literal["piecewise", "full"]

MOST = 64
"""Sets of sizes that are kept recorded; the least recently used goes first."""

BUDGET = 2 * 1024**3
"""Bytes that recordings may hold for their own: inputs, outputs, temporaries, libraries' memory."""

COPIED = 64 * 1024**2
"""Bytes of an input up to which it is copied in every call; a larger one must stay where it is."""

MOVES = 3
"""How often weights or state may move before a set of sizes is no longer recorded."""


_LEFT_ALONE: list[object] = []
"""In a forked child, the parent's recordings: releasing them there would go to a device that the
child cannot use."""


@dataclass
class _Entry:
    """Recordings for one set of sizes.

    ``copied`` are the slots of inputs with the memory that the recordings read, ``fixed`` those
    that must be where they were, ``parts`` what a call does: recordings, and steps between them.
    ``slots`` keeps the memory that is recorded, but what is the caller's: that is there only while
    a call runs.
    """

    bound: Bound
    slots: Slots
    arena: Tensor
    copied: list[tuple[int, Tensor]]
    fixed: list[tuple[int, int]]
    parts: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    recordings: list[Recording] = field(default_factory=list[Recording])
    nbytes: int = 0


@dataclass
class _State:
    """What is known of one set of sizes; ``reason`` says why it is not recorded any more."""

    calls: int = 0
    moves: int = 0
    entry: _Entry | None = None
    reason: str = ""
    breaks: set[int] = field(default_factory=set[int])


class Graphed:
    """A program that is recorded at the second call with a set of sizes, and replayed from then on.

    Results are new memory in every call: nothing that was handed out is overwritten.

    Args:
        program: what to run.
        recorder: what records.
        mode: ``full`` refuses steps between recordings, ``piecewise`` allows them.
        largest: most tokens (rows of an input) of sizes that are recorded; more run plainly.
        budget: bytes that recordings may hold.
        most: sets of sizes that are kept.

    """

    def __init__(
        self,
        program: Program,
        recorder: Recorder,
        *,
        mode: Mode = "piecewise",
        largest: int | None = None,
        budget: int = BUDGET,
        most: int = MOST,
    ) -> None:
        self.program = program
        self.recorder = recorder
        self.mode: Mode = mode
        self.largest = largest
        self.budget = budget
        self.most = most
        self.seconds = 0.0
        self._states: OrderedDict[tuple[int, ...], _State] = OrderedDict()
        self._arena = program.memory(0)
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child: a device's recordings are the parent's."""
        _LEFT_ALONE.append(self._states)
        self._states = OrderedDict()

    @property
    def recorded(self) -> int:
        """How many sets of sizes are recorded now."""
        return sum(state.entry is not None for state in self._states.values())

    @property
    def nbytes(self) -> int:
        """Bytes that the recordings hold for their own."""
        entries = [s.entry for s in self._states.values() if s.entry is not None]
        arenas = {e.arena.data_ptr(): e.arena.numel() for e in entries}
        return sum(e.nbytes for e in entries) + sum(arenas.values()) + self.recorder.nbytes()

    @property
    def reasons(self) -> dict[str, int]:
        """Why sets of sizes run without recordings, and how many do."""
        found: dict[str, int] = {}
        for state in self._states.values():
            if state.reason:
                found[state.reason] = found.get(state.reason, 0) + 1
        return found

    def __call__(self, arguments: Sequence[Tensor | int]) -> list[Tensor]:
        """Run the program; as `Program` does it.

        Raises:
            InputError: FL0901, FL0902 or FL0904, for arguments that the program was not made for.
            DeviceError: FL1008, with mode ``full``, for a step that cannot be recorded.

        """
        given = arguments if isinstance(arguments, (list, tuple)) else list(arguments)
        program = self.program
        key = program.check(given)
        with program.lock:
            if self.recorder.busy():
                return program.run(key, given)
            state = self._states.setdefault(key, _State())
            self._states.move_to_end(key)
            entry = self._entry(key, state, given)
            if entry is None:
                return program.run(key, given)
            program.kernels.follow()
            with torch.no_grad():
                return self._replay(entry, given)

    # -- choosing -----------------------------------------------------------------------------

    def _entry(self, key: tuple[int, ...], state: _State, given: Sequence[Any]) -> _Entry | None:
        """The recordings for this call, made now if this is the call for it."""
        state.calls += 1
        if state.entry is not None:
            moved = self._moved(state.entry, given)
            if moved is None:
                return state.entry
            self._forget(state)
            state.moves += 1
            if state.moves >= MOVES:
                state.reason = f"{moved} moves from call to call"
                errors.ARGUMENT_MOVED.warn(moved, found=f"{MOVES} places", stacklevel=4)
            return None  # what moved once may be in use by now: the next call records anew
        if state.reason or state.calls < 2:
            return None
        self._record(key, state, given)
        return state.entry

    def _moved(self, entry: _Entry, given: Sequence[Any]) -> str | None:
        """The name of an argument that is no longer where the recordings expect it."""
        for slot, address in entry.fixed:
            number = self.program.plan.buffers[slot].arg
            if given[number].data_ptr() != address:
                return self.program.plan.args[number].name
        return None

    def _forget(self, state: _State) -> None:
        if state.entry is not None:
            for recording in state.entry.recordings:
                recording.release()
        state.entry = None

    def _evict(self) -> None:
        """Forget the recordings used longest ago, until the rest fit; never the latest."""
        held = [s for s in self._states.values() if s.entry is not None]
        while len(held) > 1 and (len(held) > self.most or self.nbytes > self.budget):
            self._forget(held.pop(0))

    # -- recording ----------------------------------------------------------------------------

    def _record(self, key: tuple[int, ...], state: _State, given: Sequence[Any]) -> None:
        """Record the program for these sizes, or note why not; the call itself is not run."""
        start = time.perf_counter()
        bound = self.program.bind(key)
        if self.largest is not None and self._tokens(given) > self.largest:
            state.reason = f"more than {self.largest} tokens, which keep the device busy"
            return
        self.program.kernels.follow()
        try:
            state.entry = self._recorded_if_it_fits(bound, state, given)
        except NotRecordable as error:
            state.reason = str(error)
            errors.NOT_RECORDED.warn(found=str(error), stacklevel=5)
        if state.entry is not None:
            self._evict()
        self.seconds += time.perf_counter() - start

    def _tokens(self, given: Sequence[Any]) -> int:
        """The rows of the input that has most: of numbers all, of indices each element."""
        most = 0
        for spec, value in zip(self.program.plan.args, given, strict=True):
            if spec.kind == "tensor" and not spec.fixed and not spec.written:
                rows = value.shape[:-1] if spec.dtype.is_floating_point else value.shape
                most = max(most, math.prod(rows))
        return most

    def _recorded_if_it_fits(
        self, bound: Bound, state: _State, given: Sequence[Any]
    ) -> _Entry | None:
        """All recordings of one set of sizes. Without memory for them all others go, and it is
        tried once more.
        """
        for last in (False, True):
            try:
                return self._recorded(bound, state, given)
            except torch.OutOfMemoryError as error:
                for other in self._states.values():
                    self._forget(other)
                self._arena = self.program.grown(self._arena, 0)
                self.recorder.trim()
                if last:
                    state.reason = "no memory for a recording"
                    errors.NOT_RECORDED.warn(found=first_line(error), stacklevel=6)
        return None

    def _recorded(self, bound: Bound, state: _State, given: Sequence[Any]) -> _Entry:
        """All recordings of one set of sizes; a step that is refused becomes a break, and all
        begins anew.
        """
        while True:
            entry = self._frame(bound, given)
            try:
                self._record_parts(entry, state)
            except _Refused as refused:
                for recording in entry.recordings:
                    recording.release()
                if self.mode == "full":
                    raise errors.CANNOT_RECORD.error(
                        refused.label, found=refused.reason
                    ) from refused
                if refused.number < 0:
                    raise NotRecordable(refused.reason) from refused
                state.breaks.add(refused.number)
                continue
            self._let_go(entry)
            return entry

    def _let_go(self, entry: _Entry) -> None:
        """Keep nothing alive that the caller gave."""
        for slot, _ in entry.fixed:
            entry.slots[slot] = None

    def _frame(self, bound: Bound, given: Sequence[Any]) -> _Entry:
        """The memory that is recorded: the caller's for weights, state and what is large, own
        memory for other inputs and for results.
        """
        if self._arena.numel() < bound.arena:
            # older recordings keep theirs
            self._arena = self.program.grown(self._arena, bound.arena)
        plan, own = self.program.plan, list(given)
        copied: list[tuple[int, Tensor]] = []
        fixed: list[tuple[int, int]] = []
        nbytes = 0
        for slot, buffer in enumerate(plan.buffers):
            if buffer.kind != "arg":
                continue
            spec, tensor = plan.args[buffer.arg], given[buffer.arg]
            size = tensor.numel() * tensor.element_size()
            if spec.fixed or spec.written or size > COPIED:
                fixed.append((slot, tensor.data_ptr()))
                continue
            own[buffer.arg] = like(tensor)
            copied.append((slot, own[buffer.arg]))
            nbytes += size
        slots = self.program.slots(bound, own, self._arena)
        outputs = (slots[out.slot] for out in bound.outputs)
        nbytes += sum(t.untyped_storage().nbytes() for t in outputs if t is not None)
        return _Entry(bound, slots, self._arena, copied, fixed, nbytes=nbytes)

    def _record_parts(self, entry: _Entry, state: _State) -> None:
        """Walk the segments: record those that follow one another, leave breaks between them."""
        run: list[tuple[int, Segment]] = []
        for number, segment in enumerate(entry.bound.segments):
            if not isinstance(segment, BoundHost) or not (
                number in state.breaks or segment.step.waits
            ):
                run.append((number, segment))
                continue
            self._record_run(entry, run)
            run = []
            if self.mode == "full":
                raise _Refused(number, segment.step.label, "it waits for the device")
            entry.parts.append(self._between(entry, segment))
        self._record_run(entry, run)

    def _record_run(self, entry: _Entry, run: Sequence[tuple[int, Segment]]) -> None:
        if not run:
            return
        at = -1
        label = ""
        try:
            with self.recorder.record() as recording:
                for number, segment in run:
                    hosted = isinstance(segment, BoundHost)
                    at, label = (number, segment.step.label) if hosted else (-1, "a kernel")
                    self.program.run_segment(segment, entry.bound, entry.slots)
        except NotRecordable as error:
            raise _Refused(at, label, str(error)) from error
        entry.recordings.append(recording)
        entry.parts.append(recording.replay)

    def _between(self, entry: _Entry, host: BoundHost) -> Callable[[], None]:
        """A step that runs in every call, and puts its results where recordings read them."""
        if host.step.placed:
            return lambda: self.program.run_segment(host, entry.bound, entry.slots)
        for view in host.results:
            entry.slots[view.buffer] = torch.empty_strided(
                view.shape, view.strides, dtype=view.dtype, device=self.program.device
            )
            entry.nbytes += cast("Tensor", entry.slots[view.buffer]).untyped_storage().nbytes()

        kept = {view.buffer: cast("Tensor", entry.slots[view.buffer]) for view in host.results}

        def run() -> None:
            slots = list(entry.slots)
            self.program.run_segment(host, entry.bound, slots)
            for buffer, memory in kept.items():
                copy_into(memory, cast("Tensor", slots[buffer]))

        return run

    # -- replaying ----------------------------------------------------------------------------

    def _replay(self, entry: _Entry, given: Sequence[Any]) -> list[Tensor]:
        plan = self.program.plan
        for slot, memory in entry.copied:
            copy_into(memory, given[plan.buffers[slot].arg])
        for slot, _ in entry.fixed:
            entry.slots[slot] = given[plan.buffers[slot].arg]
        try:
            for part in entry.parts:
                part()
            return self._results(entry, given)
        finally:
            self._let_go(entry)

    def _results(self, entry: _Entry, given: Sequence[Any]) -> list[Tensor]:
        """What a call gives: copies of what recordings write, and views of what was given."""
        plan, slots = self.program.plan, list(entry.slots)
        for slot, _ in entry.copied:
            slots[slot] = given[plan.buffers[slot].arg]
        for item in entry.bound.returns:
            buffer = item if isinstance(item, int) else item.buffer
            made = plan.buffers[buffer].kind != "arg"
            if made and slots[buffer] is entry.slots[buffer]:
                slots[buffer] = copy_of(cast("Tensor", slots[buffer]))
        return self.program.results(entry.bound, slots)


class _Refused(Exception):
    """A segment that the recorder does not take; ``number`` is -1 for what is no host step."""

    def __init__(self, number: int, label: str, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.label = label
        self.reason = reason
