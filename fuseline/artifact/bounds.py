"""A program from a file, whose numbers are held to its memory before anything native gets them.

Offsets, sizes and strides of a plan may depend on the sizes of a call. So they are checked when the
plan is bound to such sizes, once for each set of them: every pointer that a kernel is given lies in
its buffer, every tensor that torch is given lies in it whole, and all of it fits into the machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fuseline import errors
from fuseline.artifact.archive import damaged
from fuseline.artifact.codec import GREATEST, MalformedError
from fuseline.runtime.executor import Bound, Program, bind_view
from fuseline.runtime.kernels import Kernels
from fuseline.runtime.native import Runner
from fuseline.runtime.plan import ArgSpec, Expr, HostStep, NativeStep, Plan, Step, View

Value = Callable[[Expr], int]


class CheckedProgram(Program):
    """A program whose numbers nobody has to trust.

    Args:
        path: of the file, for messages.
        plan: see `Program`.
        runner: see `Program`.
        kernels: see `Program`.
        threads: see `Program`.

    """

    def __init__(
        self, path: Path, plan: Plan, runner: Runner | None, kernels: Kernels, *, threads: int
    ) -> None:
        super().__init__(plan, runner, kernels, threads=threads)
        self._path = path

    def numbers(self, key: Sequence[int]) -> Value:
        """The value of each expression of the plan, under those of its symbols.

        Raises:
            ArtifactError: FL1102, where one of them has none.

        """
        try:
            return super().numbers(key)
        except ArithmeticError as error:
            raise damaged(self._path, f"a size without a value: {error}") from error

    def _bind(self, key: tuple[int, ...], single: bool) -> Bound:
        try:
            total = check_bounds(self.plan, self.numbers(key))
        except MalformedError as error:
            raise damaged(self._path, str(error)) from error
        if total > (most := memory_of(self.device)):
            raise errors.NO_ROOM.error(
                str(self._path), found=f"{most} bytes of memory", expected=f"{total} bytes"
            )
        return super()._bind(key, single)


@lru_cache(maxsize=8)
def memory_of(device: torch.device) -> int:
    """Bytes that the machine or the GPU has in all."""
    if device.type == "cuda":
        cuda: Any = torch.cuda
        return int(cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return GREATEST


def check_bounds(plan: Plan, value: Value) -> int:
    """Hold every step of a plan that applies for some sizes to its buffers.

    Returns:
        The bytes of temporaries and results.

    Raises:
        MalformedError: something lies outside.

    """
    steps = [step for step in plan.steps if applies(step, value)]
    scratch = max((value(s.scratch) for s in steps if not isinstance(s, HostStep)), default=0)
    sizes = [_size(plan, number, value, scratch) for number in range(len(plan.buffers))]
    for step in steps:
        if isinstance(step, NativeStep):
            _native(step, value, sizes)
            continue
        for view in (*step.operands, *step.results):
            if view is not None:
                _view(view, value, sizes)
    for view in plan.returns:
        _view(view, value, sizes)
    own = ("temp", "scratch", "output")
    pairs = zip(plan.buffers, sizes, strict=True)
    return sum(size or 0 for buffer, size in pairs if buffer.kind in own)


def applies(step: Step, value: Value) -> bool:
    """Whether a step runs for some sizes."""
    if step.when is None:
        return True
    size, least, most = value(step.when[0]), step.when[1], step.when[2]
    return size >= least and (most is None or size <= most)


def _size(plan: Plan, number: int, value: Value, scratch: int) -> int | None:
    """The bytes of a buffer; None where only the step that makes it tells."""
    buffer = plan.buffers[number]
    match buffer.kind:
        case "host":
            return None
        case "scratch":
            size = scratch
        case "arg":
            spec = plan.args[buffer.arg]
            size = _reach(spec, value) * spec.dtype.itemsize
        case _:
            size = value(buffer.nbytes)
    if not 0 <= size <= GREATEST:
        raise MalformedError(f"buffer {number} of {size} bytes")
    return size


def _reach(spec: ArgSpec | View, value: Value) -> int:
    """Elements from the first of a tensor to its last, both included."""
    shape, strides = [value(n) for n in spec.shape], [value(s) for s in spec.strides]
    if any(n < 0 for n in (*shape, *strides)):
        raise MalformedError(f"a tensor of sizes {shape[:8]} and strides {strides[:8]}")
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _native(step: NativeStep, value: Value, sizes: Sequence[int | None]) -> None:
    for number, offset in step.buffers:
        at, size = value(offset), 0 if number < 0 else sizes[number]
        if at < 0 or (size is not None and at > size):
            raise MalformedError(f"{step.symbol} at byte {at} of buffer {number} of {size} bytes")
    for count in (*map(value, step.dims), *map(value, step.grid), value(step.work)):
        if abs(count) > GREATEST:
            raise MalformedError(f"{step.symbol} with a size of {count}")


def _view(view: View, value: Value, sizes: Sequence[int | None]) -> None:
    bound = bind_view(view, value)
    reach, size = _reach(view, value) * view.dtype.itemsize, sizes[view.buffer]
    if bound.offset < 0 or bound.offset % view.dtype.itemsize:
        raise MalformedError(f"a tensor at byte {bound.offset} of buffer {view.buffer}")
    if size is not None and reach and bound.offset + reach > size:
        raise MalformedError(
            f"a tensor to byte {bound.offset + reach} of buffer {view.buffer} of {size} bytes"
        )


__all__ = ["CheckedProgram", "applies", "check_bounds", "memory_of"]
