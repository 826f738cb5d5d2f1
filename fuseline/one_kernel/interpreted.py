"""The launches of one op, with kernels in Triton, in a process in which Triton interprets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuseline.assemble import assemble_op
from fuseline.codegen.gpu.kernel import GpuKernel
from fuseline.codegen.lower import Emitted
from fuseline.debug.interpreted import launch
from fuseline.ir.types import DType
from fuseline.runtime.executor import BoundView, applies, bind_view
from fuseline.runtime.library import LIBRARY
from fuseline.runtime.plan import WORKERS, Evaluator, HostStep, LibraryStep, NativeStep, Plan

if TYPE_CHECKING:
    from fuseline.choose.trial import Trial
    from fuseline.one_kernel.trial import Alone


def interpreted(
    alone: Alone, trial: Trial, values: Mapping[str, int]
) -> tuple[Callable[[], None], int]:
    """What runs an op whose kernels are in Triton by its interpreter, step by step of its plan; and
    how many blocks all launches have.
    """
    plan = assemble_op(alone.layouts, Emitted(alone.op, alone.launches), trial.roots, values)
    value = Evaluator(plan)({**values, WORKERS: 1})
    memory = _memory(plan, trial, value)
    steps = [step for step in plan.steps if applies(step, value)]

    def view(bound: BoundView) -> Tensor:
        return bound.on(memory[bound.buffer])

    def run() -> None:
        for step in steps:
            match step:
                case NativeStep():
                    kernel = alone.kernels[step.symbol]
                    assert isinstance(kernel, GpuKernel), "of a GPU"
                    given = [
                        _pointer(memory[number], value(offset), kind)
                        for (number, offset), (_, kind) in zip(
                            step.buffers, kernel.buffers, strict=True
                        )
                    ]
                    dims = [value(d) for d in step.dims]
                    grid = [value(n) for n in step.grid]
                    launch(step.symbol, alone.sources[step.symbol], grid, [*given, *dims])
                case LibraryStep():
                    operands = [
                        None if v is None else view(bind_view(v, value)) for v in step.operands
                    ]
                    results = [view(bind_view(v, value)) for v in step.results]
                    LIBRARY[step.name](operands, results, **step.attributes)
                case HostStep():
                    taken = [view(bind_view(v, value)) for v in step.operands]
                    for place, made in zip(step.results, step.call(values, taken), strict=True):
                        view(bind_view(place, value)).copy_(made)

    blocks = sum(
        value(step.grid[0]) * value(step.grid[1]) * value(step.grid[2])
        for step in steps
        if isinstance(step, NativeStep)
    )
    return run, blocks


def _memory(plan: Plan, trial: Trial, value: Callable[[Any], int]) -> list[Tensor]:
    """The memory of each buffer of a plan of one op: its roots, and scratch."""
    scratch = max((value(s.scratch) for s in plan.steps if not isinstance(s, HostStep)), default=0)
    found: list[Tensor] = []
    for buffer in plan.buffers:
        if buffer.kind == "arg":
            found.append(trial.memory(trial.roots[buffer.arg]))
        else:
            found.append(torch.empty(scratch, dtype=torch.uint8))
    return found


def _pointer(memory: Tensor, offset: int, kind: str) -> Tensor:
    """Memory from a byte on, as elements of the type that a kernel declares."""
    wanted = DType(kind).torch
    flat = memory.reshape(-1).view(torch.uint8)[offset:]
    return flat[: flat.numel() // wanted.itemsize * wanted.itemsize].view(wanted)


__all__ = ["interpreted"]
