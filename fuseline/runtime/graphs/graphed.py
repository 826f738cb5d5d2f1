"""Runs a program from recordings: which sets of sizes have some, and when they are made."""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from fuseline import errors
from fuseline.runtime.executor import Bound, NoRoomError, Program
from fuseline.runtime.fork import renew_in_children
from fuseline.runtime.graphs.buckets import Buckets, Key, Wider
from fuseline.runtime.graphs.recorder import NotRecordable, Recorder, first_line
from fuseline.runtime.graphs.recordings import Entry, Refused, make, replay

Mode: TypeAlias = Literal["piecewise", "full"]
Kind: TypeAlias = Literal["exact", "bucket", "none"]

MOST = 64
"""Sets of sizes that are kept recorded; the least recently used goes first."""

REMEMBERED = 1024
"""Sets of sizes of which something is known; those used longest ago are forgotten first."""

BUDGET = 2 * 1024**3
"""Bytes that recordings may hold for their own: inputs, outputs, temporaries, libraries' memory."""

MOVES = 3
"""How often weights or state may move before a set of sizes is no longer recorded."""

OFTEN = 16
"""Calls after which sizes get recordings of their own beside those of their bucket: what they save
in added rows is worth the seconds and the memory for sizes that come again and again only.

A count that was rounded up gets none: what a greater one costs is a few blocks that end at once.
"""


_LEFT_ALONE: list[object] = []
"""In a forked child, the parent's recordings: releasing them there would go to a device that the
child cannot use."""


@dataclass
class _State:
    """What is known of one set of sizes; ``reason`` says why it is not recorded (any more).

    ``wider`` are the sizes that stand for these, where they are not these alone, and ``bucket``
    tells that these stand for others.
    """

    calls: int = 0
    replays: int = 0
    moves: int = 0
    seconds: float = 0.0
    entry: Entry | None = None
    wider: Wider | None = None
    bucket: bool = False
    reason: str = ""
    breaks: set[int] = field(default_factory=set[int])


@dataclass(frozen=True)
class SizeRecord:
    """What became of one set of sizes.

    Attributes:
        sizes: the value of each symbol.
        kind: whether they are recorded for themselves (``exact``) or for smaller ones, too
            (``bucket``), or not.
        calls: with these sizes; of a bucket, with any that it stands for.
        replays: of the recordings.
        graphs: recordings, one behind the other.
        nbytes: of memory that is theirs alone; temporaries are shared by all.
        seconds: that recording took.
        reason: why they are not recorded.
    """

    sizes: dict[str, int]
    kind: Kind
    calls: int
    replays: int
    graphs: int
    nbytes: int
    seconds: float
    reason: str


class Graphed:
    """A program that is recorded at the second call with a set of sizes, and replayed from then on.

    Sizes that may be rounded up (`Buckets`) share the recordings of their bucket, and get some of
    their own once they are called often. Results are new memory in every call: nothing that was
    handed out is overwritten.

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
        self.budget = budget
        self.most = most
        self.seconds = 0.0
        self.buckets = Buckets(program, largest)
        self._states: OrderedDict[Key, _State] = OrderedDict()
        self._arena = program.memory(0)
        self._moving: set[int] = set()
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child: a device's recordings are the parent's."""
        _LEFT_ALONE.append(self._states)
        self._states = OrderedDict()

    # -- what there is ------------------------------------------------------------------------

    @property
    def recorded(self) -> int:
        """How many sets of sizes are recorded now."""
        return len(self._held())

    @property
    def nbytes(self) -> int:
        """Bytes that the recordings hold for their own."""
        entries = [s.entry for s in self._held() if s.entry is not None]
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

    @property
    def sizes(self) -> list[SizeRecord]:
        """Every set of sizes that is recorded, or is not for a reason."""
        return [
            self._described(key, state)
            for key, state in sorted(self._states.items())
            if state.entry is not None or state.reason
        ]

    def _described(self, key: Key, state: _State) -> SizeRecord:
        kind: Kind = "none" if state.entry is None else "bucket" if state.bucket else "exact"
        return SizeRecord(
            dict(zip(self.program.plan.symbols, key, strict=True)),
            kind,
            state.calls,
            state.replays,
            len(state.entry.recordings) if state.entry else 0,
            state.entry.nbytes if state.entry else 0,
            state.seconds,
            state.reason,
        )

    def _held(self) -> list[_State]:
        return [state for state in self._states.values() if state.entry is not None]

    # -- choosing -----------------------------------------------------------------------------

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
            state = self._state(key)
            state.calls += 1
            chosen = self._chosen(key, state, given)
            if chosen is None or chosen.entry is None:
                return self._plain(key, given)
            chosen.replays += 1
            program.kernels.follow()
            with torch.no_grad():
                wider = None if chosen is state else state.wider
                return replay(program, chosen.entry, given, wider)

    def _plain(self, key: Key, given: Sequence[Any]) -> list[Tensor]:
        """Run without recordings; they give way where there is no memory for that beside them."""
        try:
            return self.program.run(key, given)
        except NoRoomError:
            if not self._held():
                raise
            self._forget_all()
            return self.program.run(key, given)

    def _state(self, key: Key) -> _State:
        """What is known of these sizes, which were used just now."""
        state = self._states.get(key)
        if state is None:
            refusal = self.buckets.refusal(key)
            wider = None if refusal else self.buckets.of(key)
            state = self._states[key] = _State(wider=wider, reason=refusal)
            self._trim()
        self._states.move_to_end(key)
        return state

    def _trim(self) -> None:
        """Forget sizes that were not used for long, and have no recordings."""
        if len(self._states) > REMEMBERED:
            idle = next((k for k, s in self._states.items() if s.entry is None), None)
            if idle is not None:
                del self._states[idle]

    def _chosen(self, key: Key, state: _State, given: Sequence[Any]) -> _State | None:
        """Whose recordings this call replays, made now if this is the call for it."""
        if state.entry is not None:
            return state if self._in_place(state, given) else None
        if state.wider is None:
            return self._recorded_at_second(key, state, given, None)
        bucket = self._states.get(state.wider.key) or self._state(state.wider.key)
        self._states.move_to_end(state.wider.key)
        bucket.bucket = True
        bucket.calls += 1
        if bucket.entry is not None and not self._in_place(bucket, given):
            return None
        often = state.calls > OFTEN and not state.reason and not state.wider.counted
        if often and bucket.entry is not None and self._has_room(bucket.entry):
            self._record(key, state, given, None)
            if state.entry is not None:
                return state
        if bucket.entry is not None:
            return bucket
        return self._recorded_at_second(state.wider.key, bucket, given, state.wider)

    def _recorded_at_second(
        self, key: Key, state: _State, given: Sequence[Any], wider: Wider | None
    ) -> _State | None:
        if state.reason or state.calls < 2:
            return None
        self._record(key, state, given, wider)
        return state

    def _in_place(self, state: _State, given: Sequence[Any]) -> bool:
        """Whether every argument is where the recordings expect it; else they are forgotten."""
        assert state.entry is not None, "there are recordings"
        moved = self._moved(state.entry, given)
        if not moved:
            return True
        self._forget(state)
        args = self.program.plan.args
        copied = {i for i in moved if args[i].stays and not (args[i].fixed or args[i].written)}
        rest = [i for i in moved if i not in copied or i in self._moving]
        self._moving |= copied  # copied from now on, but those that are large
        if not rest:
            return False
        state.moves += 1
        if state.moves >= MOVES:
            name = args[rest[0]].name
            state.reason = f"{name} moves from call to call"
            errors.ARGUMENT_MOVED.warn(name, found=f"{MOVES} places")
        return False  # what moved once may be in use by now: the next call records anew

    def _moved(self, entry: Entry, given: Sequence[Any]) -> list[int]:
        """The arguments that are no longer where the recordings expect them."""
        found = self.program.addresses(cast("list[object]", given), entry.numbers)
        if found == entry.places:
            return []
        pairs = zip(array("Q", found), array("Q", entry.places), strict=True)
        numbers = array("i", entry.numbers)
        return [numbers[i] for i, (here, there) in enumerate(pairs) if here != there]

    def _has_room(self, like: Entry) -> bool:
        """Whether one more set of sizes costs no other its recordings."""
        return self.recorded < self.most and self.nbytes + like.nbytes <= self.budget

    def _forget(self, state: _State) -> None:
        if state.entry is not None:
            state.entry.release()
        state.entry = None

    def _forget_all(self) -> None:
        for other in self._states.values():
            self._forget(other)
        self._arena = self.program.grown(self._arena, 0)
        self.recorder.trim()

    def _evict(self) -> None:
        """Forget the recordings used longest ago, until the rest fit; never the latest."""
        held = self._held()
        while len(held) > 1 and (len(held) > self.most or self.nbytes > self.budget):
            self._forget(held.pop(0))

    # -- recording ----------------------------------------------------------------------------

    def _record(self, key: Key, state: _State, given: Sequence[Any], wider: Wider | None) -> None:
        """Record the program for these sizes, or note why not; the call itself is not run."""
        start = time.perf_counter()
        try:
            bound = self.program.bind(key)
        except errors.DeviceError as error:  # of larger sizes: those of the call may do
            state.reason = error.diagnostic.title
            return
        self.program.kernels.follow()
        try:
            state.entry = self._recorded_if_it_fits(bound, state, given, wider)
        except NotRecordable as error:
            state.reason = str(error)
            errors.NOT_RECORDED.warn(found=str(error))
        if state.entry is not None:
            self._evict()
        state.seconds += time.perf_counter() - start
        self.seconds += time.perf_counter() - start

    def _recorded_if_it_fits(
        self, bound: Bound, state: _State, given: Sequence[Any], wider: Wider | None
    ) -> Entry | None:
        """All recordings of one set of sizes. Without memory for them all others go, and it is
        tried once more.
        """
        for last in (False, True):
            try:
                return self._recorded(bound, state, given, wider)
            except torch.OutOfMemoryError as error:
                self._forget_all()
                if last:
                    state.reason = "no memory for a recording"
                    errors.NOT_RECORDED.warn(found=first_line(error))
        return None

    def _recorded(
        self, bound: Bound, state: _State, given: Sequence[Any], wider: Wider | None
    ) -> Entry:
        """All recordings of one set of sizes; a step that is refused becomes a break, and all
        begins anew.
        """
        if self._arena.numel() < bound.arena:
            # older recordings keep theirs
            self._arena = self.program.grown(self._arena, bound.arena)
        while True:
            try:
                return make(
                    *(self.program, self.recorder, bound, given, self._arena, state.breaks),
                    forms=wider.forms if wider else {},
                    moving=self._moving,
                    whole=self.mode == "full",
                )
            except Refused as refused:
                if self.mode == "full":
                    raise errors.CANNOT_RECORD.error(
                        refused.label, found=refused.reason
                    ) from refused
                if refused.number < 0:
                    raise NotRecordable(refused.reason) from refused
                state.breaks.add(refused.number)
