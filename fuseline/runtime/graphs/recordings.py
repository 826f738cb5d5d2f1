"""The recordings of one set of sizes: how they are made of a program, and what a replay does."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fuseline.runtime.executor import Bound, BoundHost, Program, Segment, Slots
from fuseline.runtime.graphs.buckets import COPIED, Wider, fill, own_rows
from fuseline.runtime.graphs.recorder import NotRecordable, Recorder, Recording
from fuseline.runtime.memory import copy_into, copy_of, like

Forms: TypeAlias = "Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]"
"""Shape and strides of the arguments that are larger in a recording than in a call."""


@dataclass
class Entry:
    """Recordings for one set of sizes.

    ``copied`` are the slots of inputs with the memory that the recordings read, ``fixed`` those
    that must be where they were: the arguments ``numbers`` at ``places``; ``parts`` is what a call
    does: recordings, and steps between them. ``slots`` keeps the memory that is recorded, but what
    is the caller's: of that ``lent`` is there while a call runs, by slot and argument, which is
    what steps between recordings and results need.
    """

    bound: Bound
    slots: Slots
    arena: Tensor
    copied: list[tuple[int, Tensor]]
    fixed: list[int]
    numbers: bytes
    places: bytes
    parts: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    recordings: list[Recording] = field(default_factory=list[Recording])
    lent: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    nbytes: int = 0

    def release(self) -> None:
        """Give up the recordings' memory."""
        for recording in self.recordings:
            recording.release()

    def let_go(self) -> None:
        """Keep nothing alive that the caller gave."""
        for slot in self.fixed:
            self.slots[slot] = None


class Refused(Exception):
    """A segment that the recorder does not take; ``number`` is -1 for what is no host step."""

    def __init__(self, number: int, label: str, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.label = label
        self.reason = reason


def make(
    program: Program,
    recorder: Recorder,
    bound: Bound,
    given: Sequence[Any],
    arena: Tensor,
    breaks: set[int],
    *,
    forms: Forms,
    moving: Collection[int],
    whole: bool,
) -> Entry:
    """Record a program once; nothing of it is kept where that is refused.

    ``breaks`` are the numbers of segments that run between two recordings; ``whole`` allows none.
    ``moving`` are arguments that were expected to stay where they are, and did not.

    Raises:
        Refused: a segment cannot be recorded, or waits for the device and ``whole`` is set.

    """
    entry = _frame(program, bound, given, arena, forms, moving)
    try:
        _record_parts(program, recorder, entry, breaks, whole=whole)
    except BaseException:
        entry.release()
        raise
    entry.let_go()
    entry.lent = _lent(program, entry)
    return entry


def _frame(
    program: Program,
    bound: Bound,
    given: Sequence[Any],
    arena: Tensor,
    forms: Forms,
    moving: Collection[int],
) -> Entry:
    """The memory that is recorded: the caller's for what the model has, state and what is large,
    own memory for other inputs and for results.
    """
    plan, own = program.plan, list(given)
    copied: list[tuple[int, Tensor]] = []
    fixed: list[int] = []
    nbytes = 0
    for slot, buffer in enumerate(plan.buffers):
        if buffer.kind != "arg":
            continue
        spec, tensor = plan.args[buffer.arg], given[buffer.arg]
        size = tensor.numel() * tensor.element_size()
        grown = forms.get(buffer.arg)
        stays = spec.stays and buffer.arg not in moving
        if grown is None and (stays or spec.written or size > COPIED):
            fixed.append(slot)
            continue
        own[buffer.arg] = like(tensor) if grown is None else _larger(program, spec.dtype, grown)
        copied.append((slot, own[buffer.arg]))
        nbytes += cast("Tensor", own[buffer.arg]).untyped_storage().nbytes()
    slots = program.slots(bound, own, arena)
    outputs = (slots[out.slot] for out in bound.outputs)
    nbytes += sum(t.untyped_storage().nbytes() for t in outputs if t is not None)
    numbers = array("i", (plan.buffers[slot].arg for slot in fixed)).tobytes()
    places = program.addresses(own, numbers)
    return Entry(bound, slots, arena, copied, fixed, numbers, places, nbytes=nbytes)


def _lent(program: Program, entry: Entry) -> list[tuple[int, int]]:
    """What a replay needs of the caller's memory by its tensors, not only where it lies."""
    returned = {r if isinstance(r, int) else r.buffer for r in entry.bound.returns}
    alone = len(entry.parts) == len(entry.recordings)
    slots = [slot for slot in entry.fixed if not alone or slot in returned]
    return [(slot, program.plan.buffers[slot].arg) for slot in slots]


def _larger(
    program: Program, dtype: torch.dtype, form: tuple[tuple[int, ...], tuple[int, ...]]
) -> Tensor:
    return torch.empty_strided(*form, dtype=dtype, device=program.device)


def _record_parts(
    program: Program, recorder: Recorder, entry: Entry, breaks: set[int], *, whole: bool
) -> None:
    """Walk the segments: record those that follow one another, leave breaks between them."""
    run: list[tuple[int, Segment]] = []
    for number, segment in enumerate(entry.bound.segments):
        if not isinstance(segment, BoundHost) or not (number in breaks or segment.step.waits):
            run.append((number, segment))
            continue
        if whole:
            raise Refused(number, segment.step.label, "it waits for the device")
        _record_run(program, recorder, entry, run)
        run = []
        entry.parts.append(_between(program, entry, segment))
    _record_run(program, recorder, entry, run)


def _record_run(
    program: Program, recorder: Recorder, entry: Entry, run: Sequence[tuple[int, Segment]]
) -> None:
    if not run:
        return
    at, label = -1, ""
    try:
        with recorder.record() as recording:
            for number, segment in run:
                hosted = isinstance(segment, BoundHost)
                at, label = (number, segment.step.label) if hosted else (-1, "a kernel")
                program.run_segment(segment, entry.bound, entry.slots)
    except NotRecordable as error:
        raise Refused(at, label, str(error)) from error
    entry.recordings.append(recording)
    entry.parts.append(recording.replay)


def _between(program: Program, entry: Entry, host: BoundHost) -> Callable[[], None]:
    """A step that runs in every call, and puts its results where recordings read them."""
    if host.step.placed:
        return lambda: program.run_segment(host, entry.bound, entry.slots)
    kept: dict[int, Tensor] = {}
    for view in host.results:
        kept[view.buffer] = torch.empty_strided(
            view.shape, view.strides, dtype=view.dtype, device=program.device
        )
        entry.slots[view.buffer] = kept[view.buffer]
        entry.nbytes += kept[view.buffer].untyped_storage().nbytes()

    def run() -> None:
        slots = list(entry.slots)
        program.run_segment(host, entry.bound, slots)
        for buffer, memory in kept.items():
            copy_into(memory, cast("Tensor", slots[buffer]))

    return run


def replay(
    program: Program, entry: Entry, given: Sequence[Any], wider: Wider | None
) -> list[Tensor]:
    """What a call with these arguments gives, from recordings of its sizes, or of larger ones."""
    plan = program.plan
    for slot, memory in entry.copied:
        number = plan.buffers[slot].arg
        dims = wider.args.get(number) if wider is not None else None
        if dims is None:
            copy_into(memory, given[number])
        else:
            fill(memory, given[number], dims)
    for slot, number in entry.lent:
        entry.slots[slot] = given[number]
    try:
        for part in entry.parts:
            part()
        if wider is not None:
            return own_rows(program, wider, program.results(entry.bound, entry.slots), given)
        return _results(program, entry, given)
    finally:
        for slot, _ in entry.lent:
            entry.slots[slot] = None


def _results(program: Program, entry: Entry, given: Sequence[Any]) -> list[Tensor]:
    """What a call gives: copies of what recordings write, and views of what was given."""
    plan, slots = program.plan, list(entry.slots)
    for slot, _ in entry.copied:
        slots[slot] = given[plan.buffers[slot].arg]
    for item in entry.bound.returns:
        buffer = item if isinstance(item, int) else item.buffer
        made = plan.buffers[buffer].kind != "arg"
        if made and slots[buffer] is entry.slots[buffer]:
            slots[buffer] = copy_of(cast("Tensor", slots[buffer]))
    return program.results(entry.bound, slots)


__all__ = ["Entry", "Refused", "make", "replay"]
