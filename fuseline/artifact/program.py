"""One program of an artifact, for one target: the plan, and what a call takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fuseline.artifact.codec import MalformedError, decode, encode
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
    is_integer_expression,
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
        sites: what was fused in the model, and what not.
        kernels: what the plan calls, and what each needs.
    """

    plan: PlanFile
    inputs: tuple[Input, ...]
    takes: Tree
    gives: Tree
    returns: tuple[Given | Passed | Counted | Constant, ...]
    symbols: Mapping[str, tuple[int, int]]
    complex: tuple[int, ...]
    numbers: tuple[Number, ...]
    sites: tuple[Site, ...]
    kernels: tuple[KernelRecord, ...]

    def to_json(self) -> Any:
        """What is written."""
        return encode(self)

    @classmethod
    def of_json(cls, data: object, where: str) -> ProgramFile:
        """What was written.

        Raises:
            MalformedError: it is of another form, or its numbers do not fit each other.

        """
        found = decode(cls, data, where)
        _Check(found, where).run()
        return found


class _Check:
    """Holds the numbers of a program against each other: what is indexed is there."""

    def __init__(self, program: ProgramFile, where: str) -> None:
        self.program, self.where = program, where
        self.plan = program.plan

    def run(self) -> None:
        """Raise `MalformedError` for the first that is wrong."""
        plan, program = self.plan, self.program
        self._same(len(program.inputs), len(plan.args), "inputs")
        user = [i for i in program.inputs if i.kind in ("user", "symbol")]
        self._same(len(user), program.takes.leaves, "leaves of a call")
        self._same(len(program.returns), program.gives.leaves, "leaves of a result")
        for buffer in plan.buffers:
            if buffer.kind == "arg":
                self._in(buffer.arg, len(plan.args), "argument")
        for step in plan.steps:
            if isinstance(step, NativeStep):
                for number, _ in step.buffers:
                    self._in(number, len(plan.buffers), "buffer", least=-1)
            else:
                for view in (*step.operands, *step.results):
                    if view is not None:
                        self._in(view.buffer, len(plan.buffers), "buffer")
        for view in plan.returns:
            self._in(view.buffer, len(plan.buffers), "buffer")
        for group in plan.packed:
            for number in group:
                self._in(number, len(plan.args), "argument")
        for places in (plan.symbols, program.symbols):
            for number, _ in places.values():
                self._in(number, len(plan.args), "argument")
        for owed in program.returns:
            if isinstance(owed, Given):
                self._in(owed.result, len(plan.returns), "result")
            elif isinstance(owed, Passed):
                self._in(owed.input, len(plan.args), "argument")
        for number in (*program.complex, *(n.input for n in program.numbers)):
            self._in(number, len(plan.args), "argument")
        for item in program.inputs:
            if item.kind == "count":
                numbered = item.name.isdecimal() and int(item.name) < len(program.inputs)
                if not numbered or program.inputs[int(item.name)].kind != "symbol":
                    raise MalformedError(f"{self.where}: a count of {item.name[:60]!r}")
        self._expressions()

    def _expressions(self) -> None:
        for name in (*self.plan.symbols, *self.program.symbols):
            if not name.isidentifier():
                raise MalformedError(f"{self.where}: {name[:60]!r} is no name of a size")
        known = {*self.plan.symbols, *self.program.symbols, "num_workers"}
        exprs = [*self.plan.plan(dict.fromkeys(self.plan.ops, _nothing)).expressions()]
        for owed in self.program.returns:
            if isinstance(owed, Passed):
                exprs += [
                    e for e in (*owed.shape, *owed.strides, owed.offset) if isinstance(e, str)
                ]
            elif isinstance(owed, Counted) and isinstance(owed.value, str):
                exprs.append(owed.value)
        for text in exprs:
            if not is_integer_expression(text, known):
                raise MalformedError(f"{self.where}: {text[:60]!r} is no size")

    def _in(self, number: int, count: int, what: str, least: int = 0) -> None:
        if not least <= number < count:
            raise MalformedError(f"{self.where}: {what} {number} of {count}")

    def _same(self, one: int, other: int, what: str) -> None:
        if one != other:
            raise MalformedError(f"{self.where}: {one} {what} for {other}")


def _nothing(binding: Mapping[str, int], tensors: Any) -> Any:
    raise NotImplementedError


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
