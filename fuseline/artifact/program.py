"""One program of an artifact, for one target: the plan, and what a call takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fuseline.artifact.codec import decode, encode
from fuseline.artifact.trees import Tree
from fuseline.report import KernelRecord, Site
from fuseline.runtime.plan import (
    ArgSpec,
    Buffer,
    Expr,
    HostCall,
    HostStep,
    LibraryStep,
    NativeStep,
    PadRule,
    Plan,
    Step,
    VariantSpec,
    View,
)


@dataclass(frozen=True)
class HostOp:
    """A `HostStep` whose call is the reference of an op of the func, by its number there."""

    op: int
    operands: tuple[View, ...]
    results: tuple[View, ...]
    label: str
    reason: str
    waits: bool
    when: tuple[Expr, int, int | None] | None
    placed: bool
    where: str


@dataclass(frozen=True)
class PlanFile:
    """A `Plan` without anything that is a function."""

    args: tuple[ArgSpec, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[NativeStep | LibraryStep | HostOp, ...]
    returns: tuple[View, ...]
    symbols: Mapping[str, tuple[int, int]]
    ranges: Mapping[str, tuple[int, int | None]]
    packed: tuple[tuple[int, ...], ...]
    pads: Mapping[str, PadRule]
    unpadded: Mapping[str, str]
    variants: tuple[VariantSpec, ...]
    stats: Mapping[str, int]

    @classmethod
    def of(cls, plan: Plan, ops: Mapping[int, int]) -> PlanFile:
        """The form of a plan in a file; ``ops`` tells the op of each step that is a call."""
        values: dict[str, Any] = {f.name: getattr(plan, f.name) for f in fields(cls)}
        steps: list[NativeStep | LibraryStep | HostOp] = []
        for number, step in enumerate(plan.steps):
            if isinstance(step, HostStep):
                own = {f.name: getattr(step, f.name) for f in fields(HostOp) if f.name != "op"}
                step = HostOp(op=ops[number], **own)
            steps.append(step)
        values["steps"] = tuple(steps)
        return cls(**values)

    def plan(self, calls: Mapping[int, HostCall]) -> Plan:
        """The plan, given the references of ops by number."""
        steps: list[Step] = []
        for step in self.steps:
            if isinstance(step, HostOp):
                own = {f.name: getattr(step, f.name) for f in fields(step) if f.name != "op"}
                steps.append(HostStep(call=calls[step.op], **own))
            else:
                steps.append(step)
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["steps"] = tuple(steps)
        return Plan(**values)

    @property
    def ops(self) -> list[int]:
        """The ops that run by their references."""
        return [step.op for step in self.steps if isinstance(step, HostOp)]

    @property
    def kernels(self) -> list[str]:
        """The kernels that it calls."""
        return list(dict.fromkeys(s.symbol for s in self.steps if isinstance(s, NativeStep)))


InputKind = Literal["weight", "constant", "user", "symbol", "count"]


@dataclass(frozen=True)
class Input:
    """A flat input: a weight (or a buffer of the model, or a constant), or a leaf of a call; or a
    count, the tensor of an integer that is an input, too, whose number is its name.
    """

    name: str
    kind: InputKind


@dataclass(frozen=True)
class Given:
    """A result that the program computes: its number among the plan's."""

    result: int


@dataclass(frozen=True)
class Passed:
    """A result that is an input, or a view of one; sizes in elements."""

    input: int
    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    offset: Expr


@dataclass(frozen=True)
class Counted:
    """A result that is an integer, computed from the symbols."""

    value: Expr


@dataclass(frozen=True)
class Constant:
    """A result that is the same in every call."""

    value: bool | int | float | str | None


@dataclass(frozen=True)
class Number:
    """An integer of a call that the program reads from memory, within these limits."""

    input: int
    low: int
    high: int | None


@dataclass(frozen=True)
class ProgramFile:
    """What is stored of a program for a target.

    Attributes:
        plan: what runs.
        inputs: the flat inputs, in the plan's order.
        takes: the nesting of ``(args, kwargs)``; its leaves are the user's inputs and symbols.
        gives: that of the result.
        returns: its leaves.
        symbols: where each symbol of a result or a size is read from: input, and dim or -1.
        complex: the inputs that are complex to the caller; the program takes their real views.
        numbers: integers that are read from memory.
        traced: what the func calls each size that has a name of the user's.
        sites: what was fused in the model, and what not.
        kernels: what the plan calls, and what each needs.
        owners: for each step of the plan, the number of the op of the func that it is part of.
    """

    plan: PlanFile
    inputs: tuple[Input, ...]
    takes: Tree
    gives: Tree
    returns: tuple[Given | Passed | Counted | Constant, ...]
    symbols: Mapping[str, tuple[int, int]]
    complex: tuple[int, ...]
    numbers: tuple[Number, ...]
    traced: Mapping[str, str]
    sites: tuple[Site, ...]
    kernels: tuple[KernelRecord, ...]
    owners: tuple[int, ...]

    @property
    def state(self) -> set[str]:
        """The names of the tensors that it writes and keeps from call to call."""
        pairs = zip(self.inputs, self.plan.args, strict=True)
        return {i.name for i, spec in pairs if spec.written and i.kind in ("weight", "constant")}

    def to_json(self) -> Any:
        """What is written."""
        return encode(self)

    @classmethod
    def of_json(cls, data: object, where: str) -> ProgramFile:
        """What was written; `fuseline.artifact.check_program` holds its numbers to each other.

        Raises:
            MalformedError: it is of another form.

        """
        return decode(cls, data, where)


__all__ = [
    "Constant",
    "Counted",
    "Given",
    "HostOp",
    "Input",
    "Number",
    "Passed",
    "PlanFile",
    "ProgramFile",
]
