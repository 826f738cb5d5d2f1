"""The static plan: a flat list of steps over planned buffers, for any values of the symbols.

Everything that depends on a run-time size is an integer or a Python expression over the symbols
(`Expr`). All expressions of a plan are evaluated at once when the symbols are bound; nothing here
needs sympy, the IR, or a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fuseline.expressions import is_integer_expression, is_size_name
from fuseline.runtime.lanes import Lane

Expr: TypeAlias = "int | str"
"""An integer, or a Python expression over symbol names (``Max`` and ``Min`` may be called)."""

WORKERS = "num_workers"
"""A symbol that every plan may use: the most workers that a step may have."""

BufferKind: TypeAlias = Literal["arg", "temp", "scratch", "output", "host"]


@dataclass(frozen=True)
class Buffer:
    """Memory that steps read and write.

    Attributes:
        kind: ``arg`` (a tensor of the caller), ``temp`` (in the arena), ``scratch`` (in the arena,
            as large as the step that needs most of it), ``output`` (new memory that is handed
            out), ``host`` (a tensor that a host step makes).
        nbytes: size, for ``temp`` and ``output``.
        arg: number of the argument, for ``arg``.
        dtype: element type.
        name: for messages and dumps.
    """

    kind: BufferKind
    nbytes: Expr = 0
    arg: int = -1
    dtype: torch.dtype = torch.uint8
    name: str = ""


@dataclass(frozen=True)
class View:
    """A tensor on a buffer: byte offset, dims and strides (in elements)."""

    buffer: int
    offset: Expr
    dtype: torch.dtype
    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]


@dataclass(frozen=True)
class NativeStep:
    """One launch of a kernel: buffers with byte offsets, run-time integers, and its work.

    ``work`` is four times the bytes moved plus the flops: below a threshold, one worker does it
    all. ``when`` bounds one symbol expression: the step runs for ``lo <= value <= hi``. ``scratch``
    is the bytes of scratch that it needs where it runs; ``where`` is its place in the user's
    program; ``grid`` is the blocks in three dims, for a GPU, and ``lane`` the stream there.
    """

    symbol: str
    buffers: tuple[tuple[int, Expr], ...]
    dims: tuple[Expr, ...]
    work: Expr
    label: str = ""
    when: tuple[Expr, int, int | None] | None = None
    scratch: Expr = 0
    where: str = ""
    grid: tuple[Expr, Expr, Expr] = (1, 1, 1)
    lane: Lane = "main"


@dataclass(frozen=True)
class LibraryStep:
    """A call of one of torch's libraries (see `fuseline.runtime.library`) into planned memory.

    ``when``, ``scratch`` and ``where`` are those of a `NativeStep`.
    """

    name: str
    operands: tuple[View | None, ...]
    results: tuple[View, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    label: str = ""
    when: tuple[Expr, int, int | None] | None = None
    scratch: Expr = 0
    where: str = ""


HostCall: TypeAlias = Callable[[Mapping[str, int], Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class HostStep:
    """A Python callable on tensors: an ATen call, or the reference of an op without a kernel.

    The call gets the symbols' values and the operands. Its results go to new ``host`` buffers; with
    ``placed``, into memory that is planned. ``waits`` tells that it looks at data on the host, so
    that it cannot be part of a recording. ``when`` and ``where`` are those of a `NativeStep`.
    """

    call: HostCall
    operands: tuple[View, ...]
    results: tuple[View, ...]
    label: str = ""
    reason: str = ""
    waits: bool = False
    when: tuple[Expr, int, int | None] | None = None
    placed: bool = False
    where: str = ""


Step: TypeAlias = "NativeStep | LibraryStep | HostStep"


@dataclass(frozen=True)
class ArgSpec:
    """What a plan expects of one argument; ints carry an expression, tensors dims and strides.

    A ``fixed`` one is a weight, which shares its memory with no other argument; one that ``stays``,
    a parameter or a buffer of the model, is likely to lie where it did in the last call. On a GPU,
    one that is ``aligned`` begins at a multiple of 16 bytes.
    """

    name: str
    kind: Literal["tensor", "int"]
    dtype: torch.dtype = torch.int64
    shape: tuple[Expr, ...] = ()
    strides: tuple[Expr, ...] = ()
    value: Expr = 0
    written: bool = False
    fixed: bool = False
    stays: bool = False
    aligned: bool = True


@dataclass(frozen=True)
class PadArg:
    """A dim of an argument that grows with a symbol, and what the added places hold.

    ``fill`` None: what the last of the given ones holds.
    """

    arg: int
    axis: int
    fill: int | None = None


@dataclass(frozen=True)
class RowAxis:
    """A dim of a result that grows: ``outer`` times all rows, each of ``inner`` elements."""

    axis: int
    outer: Expr
    inner: Expr


@dataclass(frozen=True)
class PadRule:
    """That a call may run with a greater value of a symbol: what it has itself comes out the same.

    Attributes:
        args: the dims of arguments that grow; state and weights are never among them.
        returns: for each result, the dims that grow.
        limits: what the symbol may grow to at most.
    """

    args: tuple[PadArg, ...] = ()
    returns: tuple[tuple[RowAxis, ...], ...] = ()
    limits: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class VariantSpec:
    """A count that decides how much a program does, such as that of the adapters in use.

    Graphs are made for the counts 0, 1, 2, 4, ... and ``most``; a call takes the next one. So the
    program must do the same for every count that is not below the real one, given ``fill`` in the
    places of ``args`` that this adds. No result has the count as a size.

    Attributes:
        name: for the report.
        symbol: which carries the count: the value of an integer argument, or a size.
        most: the greatest count; a call with more runs without a graph.
        args: the dims of arguments that have the count as their size.
    """

    name: str
    symbol: str
    most: int
    args: tuple[PadArg, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Steps, buffers, arguments and results of one compiled func.

    ``returns`` are views of buffers. ``symbols`` maps each symbol to
    where it is read from: argument number and dim (-1: the argument is the integer itself).
    ``packed`` lists groups of arguments that must lie one behind the other in memory.
    ``pads`` tells which symbols may grow, and ``unpadded`` why others may not; ``variants`` are
    symbols that are counts.
    """

    args: tuple[ArgSpec, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    returns: tuple[View, ...]
    symbols: Mapping[str, tuple[int, int]]
    ranges: Mapping[str, tuple[int, int | None]]
    packed: tuple[tuple[int, ...], ...] = ()
    pads: Mapping[str, PadRule] = field(default_factory=dict[str, PadRule])
    unpadded: Mapping[str, str] = field(default_factory=dict[str, str])
    variants: tuple[VariantSpec, ...] = ()
    stats: Mapping[str, int] = field(default_factory=dict[str, int])

    def expressions(self) -> list[str]:
        """Every distinct expression of the plan, in first-use order."""
        found: dict[str, None] = {}

        def note(*exprs: Expr) -> None:
            found.update((e, None) for e in exprs if isinstance(e, str))

        for buffer in self.buffers:
            note(buffer.nbytes)
        for arg in self.args:
            note(*arg.shape, *arg.strides, arg.value)
        for item in self.returns:
            note(*_view_exprs(item))
        for step in self.steps:
            note(*_step_exprs(step))
        for rule in self.pads.values():
            note(
                *rule.limits,
                *(e for dims in rule.returns for d in dims for e in (d.outer, d.inner)),
            )
        return list(found)


def _view_exprs(view: View) -> tuple[Expr, ...]:
    return (view.offset, *view.shape, *view.strides)


def _step_exprs(step: Step) -> list[Expr]:
    when: tuple[Expr, ...] = () if step.when is None else (step.when[0],)
    if isinstance(step, HostStep):
        return [*(e for view in (*step.operands, *step.results) for e in _view_exprs(view)), *when]
    if isinstance(step, LibraryStep):
        views = [v for v in (*step.operands, *step.results) if v is not None]
        return [*(e for view in views for e in _view_exprs(view)), *when, step.scratch]
    return [
        *step.grid,
        *(offset for _, offset in step.buffers),
        *step.dims,
        step.work,
        *when,
        step.scratch,
    ]


class Evaluator:
    """Evaluates all expressions of a plan under a binding, in one compiled function."""

    def __init__(self, plan: Plan) -> None:
        self.texts = plan.expressions()
        self.names = [*plan.symbols, WORKERS]
        for text in self.texts:
            _check(text)
        for name in self.names:
            if not is_size_name(name):
                raise ValueError(f"{name!r} is no name of a size")
        source = f"lambda {', '.join(self.names)}: [{', '.join(self.texts)}]"
        self._function: Callable[..., list[int]] = eval(
            compile(source, "<plan>", "eval"), {"__builtins__": {}, "Max": max, "Min": min}
        )

    def __call__(self, binding: Mapping[str, int]) -> Callable[[Expr], int]:
        """A function that gives the value of each expression of the plan."""
        values = self._function(*(binding[name] for name in self.names))
        table = dict(zip(self.texts, values, strict=True))
        return lambda expr: expr if isinstance(expr, int) else table[expr]


def _check(text: str) -> None:
    """Refuse anything but integer arithmetic: plans may come from files."""
    if not is_integer_expression(text):
        raise ValueError(f"{text!r} is not an integer expression")
