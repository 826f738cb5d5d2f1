"""Runs a plan: binds the symbols, lays out the arena, runs pieces and host steps, gives results."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fuseline import _torch, errors
from fuseline.runtime.fork import renew_in_children
from fuseline.runtime.kernels import HostKernels, Kernels
from fuseline.runtime.lanes import turns
from fuseline.runtime.library import LIBRARY
from fuseline.runtime.native import MOST_SHARES, ArgumentSpec, Launch, Piece, Runner, Signature
from fuseline.runtime.native.fallback import addresses_of
from fuseline.runtime.plan import (
    WORKERS,
    ArgSpec,
    Evaluator,
    Expr,
    HostStep,
    LibraryStep,
    NativeStep,
    Plan,
    Step,
    View,
)

Argument: TypeAlias = "Tensor | int"

ARENA_ALIGNMENT = 64
MAX_BINDINGS = 64
"""How many sets of sizes a program keeps bound; the least recently used goes first."""

SERIAL_WORK = 400_000
"""Work (see `NativeStep.work`) that one worker does in about the time that two need to meet."""


@dataclass(frozen=True)
class BoundView:
    """A view, all numbers known."""

    buffer: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def on(self, tensor: Tensor) -> Tensor:
        """This view of the tensor that holds the buffer."""
        same = tensor.dtype == self.dtype and tensor.shape == self.shape and not self.offset
        if same and tensor.stride() == self.strides:
            return tensor
        flat = tensor if tensor.dtype == self.dtype else tensor.view(self.dtype)
        start = int(tensor.storage_offset()) * tensor.element_size() + self.offset
        return flat.as_strided(self.shape, self.strides, start // self.dtype.itemsize)


@dataclass(frozen=True)
class BoundHost:
    """A host step, all numbers known."""

    step: HostStep
    operands: tuple[BoundView, ...]
    results: tuple[BoundView, ...]


@dataclass(frozen=True)
class BoundLibrary:
    """A library step, all numbers known."""

    step: LibraryStep
    operands: tuple[BoundView | None, ...]
    results: tuple[BoundView, ...]


@dataclass(frozen=True)
class _Output:
    """New memory that is handed out; where one result is all of it, in that result's form."""

    slot: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


Segment: TypeAlias = "Piece | BoundLibrary | BoundHost"
"""What runs one after the other."""

Slots: TypeAlias = "list[Tensor | None]"
"""The memory of each of the plan's buffers in a call, and behind them the arena."""


@dataclass(frozen=True)
class Bound:
    """A plan under one binding of its symbols.

    ``returns`` are slots whose tensors are results as they are, or views; ``native`` tells that no
    step runs on torch's tensors.
    """

    binding: Mapping[str, int]
    arena: int
    places: Mapping[int, int]
    outputs: tuple[_Output, ...]
    segments: tuple[Segment, ...]
    returns: tuple[int | BoundView, ...]
    native: bool


class NoRoomError(errors.DeviceError, torch.OutOfMemoryError):
    """There is no memory for a call of which nothing has run."""


class Program:
    """A plan that can be called with flat arguments; safe to call from several threads. ``used``
    tells whether it was.

    Args:
        plan: what to run.
        runner: runs native steps; None where the plan has none.
        kernels: what native steps call; on the CPU, and none, by default.
        threads: most workers that a step may use; a GPU has workers of its own, and gets one.
        pieces: run native steps that follow one another in one call; else each in its own.

    """

    def __init__(
        self,
        plan: Plan,
        runner: Runner | None = None,
        kernels: Kernels | None = None,
        *,
        threads: int = 1,
        pieces: bool = True,
    ) -> None:
        self.plan = plan
        self.pieces = pieces
        self.threads = threads if (kernels or HostKernels()).device.type == "cpu" else 1
        self.kernels = kernels or HostKernels()
        self.device = self.kernels.device
        self.signature = _signature(plan, runner, self.device)
        self.addresses = runner.addresses if runner else addresses_of
        self._runner = runner
        self._evaluate = Evaluator(plan)
        self._bound: OrderedDict[tuple[tuple[int, ...], bool], Bound] = OrderedDict()
        self.used = False
        self.lock = threading.Lock()
        self._arena = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._arena_slot = len(plan.buffers)
        self._tensors = [b.arg for b in plan.buffers if b.kind == "arg"]
        assert all(b.kind == "arg" for b in plan.buffers[: len(self._tensors)]), "they come first"
        self._all_tensors = self._tensors == list(range(len(plan.args)))
        self._others = len(plan.buffers) - len(self._tensors)
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child: what another thread was running there will not end."""
        if self.lock.locked():
            self.lock = threading.Lock()
            self._bound.clear()

    @property
    def arena_bytes(self) -> int:
        """Bytes of planned temporary memory that are held now."""
        return self._arena.numel()

    def __call__(self, arguments: Sequence[Argument]) -> list[Tensor]:
        """Run the plan; arguments in the plan's order, buffers written in place.

        Raises:
            InputError: FL0901, FL0902 or FL0904, for arguments that the plan was not made for.

        """
        given = arguments if isinstance(arguments, (list, tuple)) else list(arguments)
        key = self.check(given)
        with self.lock:
            return self.run(key, given)

    def run(self, key: tuple[int, ...], given: Sequence[Argument]) -> list[Tensor]:
        """Run the plan for sizes that `check` gave; whoever calls holds the lock.

        While a profiler of torch watches, each step runs by itself, in a range with its name.
        """
        if _torch.profiling():
            return self._run_steps(key, given, lambda step: _torch.named_range(range_name(step)))
        bound = self.bind(key)
        self.kernels.follow()
        if bound.native:
            return self._run(bound, given)
        with torch.no_grad():
            return self._run(bound, given)

    def run_stepwise(
        self, given: Sequence[Argument], around: Callable[[Step], AbstractContextManager[object]]
    ) -> list[Tensor]:
        """Run the plan one step at a time, each within what ``around`` gives for it.

        Raises:
            InputError: FL0901, FL0902 or FL0904, for arguments that the plan was not made for.

        """
        key = self.check(given)
        with self.lock:
            return self._run_steps(key, given, around)

    def _run_steps(
        self,
        key: tuple[int, ...],
        given: Sequence[Argument],
        around: Callable[[Step], AbstractContextManager[object]],
    ) -> list[Tensor]:
        value = self.numbers(key)
        steps = [step for step in self.plan.steps if applies(step, value)]
        with torch.no_grad():
            bound = self.bind(key, single=True)
            self.kernels.follow()
            slots = self._room(bound, given)
            for step, segment in zip(steps, bound.segments, strict=True):
                with around(step):
                    self.run_segment(segment, bound, slots)
            return self.results(bound, slots)

    def check(self, given: Sequence[Argument]) -> tuple[int, ...]:
        """The values of the plan's symbols in a call with these arguments, a list or tuple.

        Raises:
            InputError: FL0901, FL0902 or FL0904, for arguments that the plan was not made for.

        """
        key = self.signature.match(cast("tuple[object, ...]", given))
        if isinstance(key, int):
            raise self._mismatch(given, key)
        self.used = True
        return key

    def shared(self, given: Sequence[object]) -> errors.FuselineError | None:
        """The error FL0904 of arguments that share memory which is written, or None."""
        names = self.signature.overlap(given)
        if names is None:
            return None
        return errors.ARGUMENTS_OVERLAP.error(names[0], found=f"memory of {names[1]}")

    def _mismatch(self, given: Sequence[object], number: int) -> errors.FuselineError:
        if number < 0:
            shared = self.shared(given)
            assert shared is not None, "match has found it"
            return shared
        if len(given) != len(self.plan.args):
            found, expected = str(len(given)), str(len(self.plan.args))
            return errors.ARGUMENT_COUNT.error(found=found, expected=expected)
        wrong = self.signature.mismatch(given, number)
        return errors.ARGUMENT_MISMATCH.error(
            wrong.argument, found=wrong.found, expected=wrong.expected
        )

    # -- binding ------------------------------------------------------------------------------

    def bind(self, key: tuple[int, ...], *, single: bool = False) -> Bound:
        """The plan under the values of its symbols that `check` gave; ``single`` makes a segment
        of every step.
        """
        single = single or not self.pieces
        bound = self._bound.get((key, single)) or self._bind(key, single)
        self._bound.move_to_end((key, single))
        return bound

    def numbers(self, key: Sequence[int]) -> Callable[[Expr], int]:
        """The value of each expression of the plan, under those of its symbols."""
        binding = dict(zip(self.plan.symbols, key, strict=True))
        return self._evaluate(binding | {WORKERS: min(self.threads, MOST_SHARES)})

    def _bind(self, key: tuple[int, ...], single: bool) -> Bound:
        binding = dict(zip(self.plan.symbols, key, strict=True))
        value = self.numbers(key)
        places, arena = lay_out(self.plan, value)
        views = [bind_view(view, value) for view in self.plan.returns]
        outputs = [
            _output(number, value(b.nbytes), b.dtype, views)
            for number, b in enumerate(self.plan.buffers)
            if b.kind == "output"
        ]
        whole = {output.slot: output for output in outputs}
        segments = tuple(self._segments(value, places, single))
        bound = Bound(
            binding,
            arena,
            places,
            tuple(outputs),
            segments,
            tuple(v.buffer if _is_whole(v, whole.get(v.buffer)) else v for v in views),
            all(isinstance(segment, Piece) for segment in segments),
        )
        self._bound[key, single] = bound
        while len(self._bound) > MAX_BINDINGS:
            self._bound.popitem(last=False)
        return bound

    def _segments(
        self, value: Callable[[Expr], int], places: Mapping[int, int], single: bool
    ) -> list[Segment]:
        segments: list[Segment] = []
        steps: list[NativeStep] = []
        slots = len(self.plan.buffers) + 1

        def close() -> None:
            if steps:
                assert self._runner is not None, "a plan with native steps comes with a runner"
                pairs = zip(steps, turns([step.lane for step in steps]), strict=True)
                calls = [self._call(step, value, places, turn) for step, turn in pairs]
                segments.append(self._runner.piece(calls, slots=slots, threads=self.threads))
                steps.clear()

        for step in self.plan.steps:
            if not applies(step, value):
                continue
            if isinstance(step, NativeStep):
                steps.append(step)
                if single:
                    close()
                continue
            close()
            if isinstance(step, LibraryStep):
                operands = (None if v is None else bind_view(v, value) for v in step.operands)
                results = (bind_view(v, value) for v in step.results)
                segments.append(BoundLibrary(step, tuple(operands), tuple(results)))
                continue
            segments.append(
                BoundHost(
                    step,
                    tuple(bind_view(v, value) for v in step.operands),
                    tuple(bind_view(v, value) for v in step.results),
                )
            )
        close()
        return segments

    def _call(
        self,
        step: NativeStep,
        value: Callable[[Expr], int],
        places: Mapping[int, int],
        turn: int,
    ) -> Launch:
        buffers: list[tuple[int, int]] = []
        for buffer, offset in step.buffers:
            if buffer in places:
                buffers.append((self._arena_slot, places[buffer] + value(offset)))
            else:
                buffers.append((buffer, value(offset)))
        width = max(1, min(self.threads, value(step.work) // SERIAL_WORK))
        grid = (value(step.grid[0]), value(step.grid[1]), value(step.grid[2]))
        function, dims = self.kernels.call(step.symbol, tuple(map(value, step.dims)), grid, turn)
        return Launch(
            function,
            tuple(buffers),
            dims,
            width,
            label=f"{step.label} {step.symbol}",
            where=step.where,
        )

    # -- running ------------------------------------------------------------------------------

    def _run(self, bound: Bound, arguments: Sequence[Any]) -> list[Tensor]:
        slots = self._room(bound, arguments)
        for segment in bound.segments:
            self.run_segment(segment, bound, slots)
        return self.results(bound, slots)

    def _room(self, bound: Bound, arguments: Sequence[Any]) -> Slots:
        """The memory of a call; nothing of it has run yet.

        Raises:
            NoRoomError: FL1010, where there is none.

        """
        try:
            if self._arena.numel() < bound.arena:
                self._arena = self.grown(self._arena, bound.arena)
            return self.slots(bound, arguments, self._arena)
        except torch.OutOfMemoryError as error:
            self._arena = self.grown(self._arena, 0)
            value = self.numbers(tuple(bound.binding.values()))
            results = sum(value(self.plan.buffers[out.slot].nbytes) for out in bound.outputs)
            needed = f"{bound.arena} bytes of temporaries and {results} of results"
            found = str(error).partition("\n")[0].rstrip(".")
            raise NoRoomError(errors.NO_ROOM.diagnostic(found=found, expected=needed)) from error

    def grown(self, old: Tensor, nbytes: int) -> Tensor:
        """Memory in the place of other memory, which launches that are under way may still use."""
        if old.device.type == "cuda" and old.numel():
            old.record_stream(torch.cuda.current_stream(old.device))
        return self.memory(nbytes)

    def memory(self, nbytes: int) -> Tensor:
        """Memory on the program's device; torch aligns it to 64 bytes at least."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def slots(self, bound: Bound, arguments: Sequence[Any], arena: Tensor) -> Slots:
        """The memory of a call: its arguments, new outputs, and the arena."""
        slots: Slots
        slots = [*arguments] if self._all_tensors else [arguments[i] for i in self._tensors]
        slots += [None] * self._others
        slots.append(arena)
        for out in bound.outputs:
            slots[out.slot] = self._empty(out)
        return slots

    def run_segment(self, segment: Segment, bound: Bound, slots: Slots) -> None:
        """Run one segment on the memory of a call."""
        match segment:
            case Piece():
                self.kernels.enter()
                try:
                    segment(slots)
                finally:
                    self.kernels.leave()
            case BoundLibrary():
                self._run_library(segment, bound, slots)
            case BoundHost():
                self._run_host(segment, bound, slots)

    def results(self, bound: Bound, slots: Slots) -> list[Tensor]:
        """What a call gives."""
        return [
            cast("Tensor", slots[item]) if isinstance(item, int) else self.view(item, bound, slots)
            for item in bound.returns
        ]

    def view(self, view: BoundView, bound: Bound, slots: Sequence[Tensor | None]) -> Tensor:
        """The tensor of a view in the memory of a call."""
        place = bound.places.get(view.buffer)
        if place is None:
            tensor = slots[view.buffer]
            assert tensor is not None, f"buffer {view.buffer} is read before it is written"
            return view.on(tensor)
        arena = slots[self._arena_slot]
        assert arena is not None, "a call has an arena"
        shifted = BoundView(view.buffer, view.offset + place, view.dtype, view.shape, view.strides)
        return shifted.on(arena)

    def _empty(self, out: _Output) -> Tensor:
        if self.device.type == "cpu":
            return _torch.empty_strided(out.shape, out.strides, out.dtype)
        return torch.empty_strided(out.shape, out.strides, dtype=out.dtype, device=self.device)

    def _run_library(
        self, call: BoundLibrary, bound: Bound, slots: Sequence[Tensor | None]
    ) -> None:
        operands = [None if v is None else self.view(v, bound, slots) for v in call.operands]
        results = [self.view(v, bound, slots) for v in call.results]
        LIBRARY[call.step.name](operands, results, **call.step.attributes)

    def _run_host(self, host: BoundHost, bound: Bound, slots: list[Tensor | None]) -> None:
        operands = [self.view(v, bound, slots) for v in host.operands]
        with self.device if self.device.type != "cpu" else nullcontext():  # what a call creates
            results = host.step.call(bound.binding, operands)
        if host.step.placed:
            for view, made in zip(host.results, results, strict=True):
                self.view(view, bound, slots).copy_(made)
            return
        shared = {t.untyped_storage().data_ptr() for t in operands}
        for view, made in zip(host.results, results, strict=True):
            own = made.untyped_storage().data_ptr() not in shared
            fits = own and made.stride() == view.strides and not made.storage_offset()
            slots[view.buffer] = made if fits else _restride(made, view)


def _output(slot: int, nbytes: int, dtype: torch.dtype, views: Sequence[BoundView]) -> _Output:
    """The form of an output: that of the first result that takes all of its bytes."""
    flat = _Output(slot, (nbytes // dtype.itemsize,), (1,), dtype)
    for view in views:
        form = _Output(slot, view.shape, view.strides, view.dtype)
        if view.buffer == slot and _is_whole(view, form) and _nbytes(form) == nbytes:
            return form
    return flat


def _nbytes(form: _Output) -> int:
    """The bytes from the first element to the last."""
    if 0 in form.shape:
        return 0
    steps = ((n - 1) * stride for n, stride in zip(form.shape, form.strides, strict=True))
    return (1 + sum(steps)) * form.dtype.itemsize


def _is_whole(view: BoundView, form: _Output | None) -> bool:
    """Whether a view of an output is the tensor that was made for it."""
    if form is None or view.offset:
        return False
    return (view.dtype, view.shape, view.strides) == (form.dtype, form.shape, form.strides)


def _restride(tensor: Tensor, view: BoundView) -> Tensor:
    fresh = torch.empty_strided(view.shape, view.strides, dtype=view.dtype, device=tensor.device)
    return fresh.copy_(tensor)


def _signature(plan: Plan, runner: Runner | None, device: torch.device) -> Signature:
    """The check of a call: sizes that are numbers or symbols are held to, composite ones are not.

    A composite size, such as ``2*S``, follows from its symbols; whoever captured the program has
    guarded it.
    """
    known = set(plan.symbols)
    arguments = [_argument(spec, known) for spec in plan.args]
    ranges = {name: plan.ranges.get(name, (0, None)) for name in plan.symbols}
    if runner is None:
        return Signature(arguments, ranges, device=device)
    return runner.signature(arguments, ranges, device)


def _argument(spec: ArgSpec, known: set[str]) -> ArgumentSpec:
    def size(expr: Expr) -> int | str | None:
        return expr if isinstance(expr, int) or expr in known else None

    if spec.kind == "int":
        return ArgumentSpec(spec.name, None, value=size(spec.value))
    return ArgumentSpec(
        spec.name,
        spec.dtype,
        tuple(map(size, spec.shape)),
        tuple(map(size, spec.strides)),
        memory="written" if spec.written else "fixed" if spec.fixed else "read",
        aligned=spec.aligned,
    )


def range_name(step: Step) -> str:
    """What a step is called in profiles: its op, and its place in the user's program."""
    return f"fuseline::{step.label} {step.where}".rstrip()


def lay_out(plan: Plan, value: Callable[[Expr], int]) -> tuple[dict[int, int], int]:
    """The arena offset of each temporary and of scratch, and the bytes of the arena."""
    scratch = max(
        (
            value(step.scratch)
            for step in plan.steps
            if not isinstance(step, HostStep) and applies(step, value)
        ),
        default=0,
    )
    places: dict[int, int] = {}
    end = 0
    for number, buffer in enumerate(plan.buffers):
        if buffer.kind in ("temp", "scratch"):
            nbytes = scratch if buffer.kind == "scratch" else value(buffer.nbytes)
            places[number] = end
            end += -(-nbytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    return places, end


def applies(step: Step, value: Callable[[Expr], int]) -> bool:
    """Whether a step runs for these sizes."""
    if step.when is None:
        return True
    size, lo, hi = value(step.when[0]), step.when[1], step.when[2]
    return size >= lo and (hi is None or size <= hi)


def bind_view(view: View, value: Callable[[Expr], int]) -> BoundView:
    """A view, its expressions evaluated."""
    return BoundView(
        view.buffer,
        value(view.offset),
        view.dtype,
        tuple(map(value, view.shape)),
        tuple(map(value, view.strides)),
    )
