"""From planned ops to launches: one function per op class says which kernel does it, and how.

A lowering looks at one op and at where its operands lie, and answers with launches, with operands
that it needs dense, or with the reason why no kernel fits (then the op's reference runs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

from fuseline.codegen.forms import Form, When
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.targets import Backend
from fuseline.ir.core import Func, Op, Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.call import called
from fuseline.ir.ops.fused import Copy
from fuseline.ir.types import Dim, DType, dim, symbol

OpT = TypeVar("OpT", bound=Op)
Lane: TypeAlias = Literal["main", "beside", "aside"]


@dataclass(frozen=True)
class Scratch:
    """Memory that only this op's launches use, the same memory for all of them.

    It is dead behind the op, so one block serves all ops.
    """

    nbytes: Dim


Operand: TypeAlias = "Value | Scratch | None"


@dataclass(frozen=True)
class Launch:
    """One call of a kernel.

    Attributes:
        kernel: what to call.
        buffers: values (passed with their layout's offset) and scratch, in the kernel's order.
        dims: run-time integers, in the kernel's order.
        work: four times the bytes moved, plus the flops; small work is left to one worker.
        when: run only while the first dim lies within the bounds (both included).
        form: what it does there, where other sizes have other launches.
        grid: blocks in three dims, for a GPU; any of them may be 0, and then nothing runs.
        others: the same with other configurations, the likelier first; every one will do.
        lane: ``aside``, on a GPU: part of a branch that needs nothing of the launches ``beside``
            it, nor they of it, up to the next one of the lane ``main``.
        instead: launches that do what all launches of the op do in this range, by libraries.
    """

    kernel: KernelTemplate
    buffers: tuple[Operand, ...]
    dims: tuple[Dim, ...]
    work: Dim
    when: When = None
    form: Form | None = None
    grid: tuple[Dim, Dim, Dim] = (1, 1, 1)
    others: tuple[Launch, ...] = ()
    lane: Lane = "main"
    instead: tuple[Launch, ...] = ()

    def only(self, size: Dim, first: int, last: int | None) -> Launch:
        """The launch, whatever its configuration, for a range of a size."""
        others = tuple(other.only(size, first, last) for other in self.others)
        return replace(self, when=(size, first, last), others=others)

    def on(self, lane: Lane) -> Launch:
        """The launch, whatever its configuration, in another lane."""
        return replace(self, lane=lane, others=tuple(other.on(lane) for other in self.others))


@dataclass(frozen=True)
class NeedDense:
    """The kernel takes these operands only dense in memory."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Refusal:
    """No kernel does this op, and why."""

    reason: str


Lowered: TypeAlias = "Sequence[Launch] | NeedDense | Refusal"
Lowering: TypeAlias = Callable[[Any, LayoutMap], Lowered]

WORKERS = symbol("num_workers")
"""In scratch sizes: the most workers that a launch may have."""

LOWERINGS: dict[Backend, dict[type[Op], Lowering]] = {"cpu": {}, "cuda": {}}
"""The lowering of each op class; filled by `lowers`."""


def lowers(
    *classes: type[OpT],
    backend: Backend = "cpu",
) -> Callable[[Callable[[OpT, LayoutMap], Lowered]], Callable[[OpT, LayoutMap], Lowered]]:
    """Register a function as the lowering of op classes for the targets of a backend."""

    def register(
        function: Callable[[OpT, LayoutMap], Lowered],
    ) -> Callable[[OpT, LayoutMap], Lowered]:
        for cls in classes:
            LOWERINGS[backend][cls] = function
        return function

    return register


def lower(op: Op, layouts: LayoutMap, backend: Backend = "cpu") -> Lowered:
    """What runs this op."""
    function = LOWERINGS[backend].get(type(op))
    if function is None:
        return Refusal(f"no kernel for {called(op)}")
    return function(op, layouts)


FLOATS = (DType.F32, DType.BF16, DType.F16)


def dtype_name(value: Value | None) -> str | None:
    """The element type's name; None for an absent operand."""
    return None if value is None else value.dtype.value


def unsupported(*values: Value | None) -> Refusal | None:
    """A refusal where an operand is not of a floating type that the kernels compute with."""
    for value in values:
        if value is not None and value.dtype not in FLOATS:
            return Refusal(f"{value.dtype} operands; the kernel takes f32, bf16 and f16")
    return None


def not_dense(values: Iterable[Value | None], layouts: LayoutMap) -> NeedDense | None:
    """`NeedDense` for those values that are not; None where all are."""
    found = [v for v in values if v is not None and not layouts.layout(v).is_dense(v.shape)]
    return NeedDense(tuple(found)) if found else None


def work(op: Op) -> Dim:
    """The work of an op for `Launch.work`."""
    cost = op.cost()
    return dim(4 * cost.bytes + cost.flops)


@dataclass(frozen=True)
class Emitted:
    """One op that does something at run time: its launches, or why its reference runs."""

    op: Op
    launches: tuple[Launch, ...]
    refusal: str = ""


def emit(
    func: Func, layouts: LayoutMap, backend: Backend = "cpu", *, unavailable: str = ""
) -> list[Emitted]:
    """Lower every op of a func that is not a view; `copy` ops are inserted where one is needed.

    ``unavailable`` is the reason why no kernel can be built at all, where that is so.
    """
    emitted: list[Emitted] = []
    copies: dict[Value, Value] = {}
    for op in func.ops:
        if layouts.is_view(op) or not (op.results or op.operands):
            continue
        if unavailable:
            emitted.append(Emitted(op, (), unavailable))
            continue
        outcome = lower(op, layouts, backend)
        if isinstance(outcome, NeedDense):
            for value in outcome.values:
                if value not in copies:
                    copy = Copy(value)
                    copy.place_like(op)
                    func.edit(before=op, insert=[copy])
                    layouts.add(copy)
                    emitted.append(_emit_one(copy, lower(copy, layouts, backend)))
                    copies[value] = copy.y
            func.replace_operands(op, {v: copies[v] for v in outcome.values})
            outcome = lower(op, layouts, backend)
        emitted.append(_emit_one(op, outcome))
    return emitted


def _emit_one(op: Op, outcome: Lowered) -> Emitted:
    if isinstance(outcome, Refusal):
        return Emitted(op, (), outcome.reason)
    if isinstance(outcome, NeedDense):
        return Emitted(op, (), f"{op.name} still needs dense operands after a copy")
    possible = [launch for launch in outcome if _may_run(launch)]
    if outcome and not possible:
        return Emitted(op, (), "there is nothing to do for its size")
    return Emitted(op, tuple(possible))


def _may_run(launch: Launch) -> bool:
    """Whether a launch is not for other sizes than the one that is known."""
    if launch.when is None:
        return True
    size, low, high = launch.when
    return not isinstance(size, int) or (low <= size and (high is None or size <= high))


__all__ = [
    "Emitted",
    "Launch",
    "Lowered",
    "NeedDense",
    "Refusal",
    "Scratch",
    "emit",
    "lower",
    "lowers",
    "not_dense",
    "work",
]
