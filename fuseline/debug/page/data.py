"""What the page shows, as plain data: it becomes the JSON that the page's script reads.

Texts of IR repeat from pass to pass, so a program keeps each line once, and everything else names
lines by their numbers. Bytes are bytes, times are seconds, and sizes that vary have the values of
the example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fuseline.report import KernelRecord, Site

Row: TypeAlias = tuple[int, int]
"""A row of a diff: numbers of the line before and of the line after; -1 where there is none."""

Span: TypeAlias = tuple[int, int]
"""The first and the last of some steps, by number."""


@dataclass(frozen=True)
class Hunk:
    """A part of a func's text that a pass changed, with some lines around it.

    Attributes:
        before: number of its first line in the text before, from 1.
        after: the same in the text after.
        rows: side by side; equal numbers are a line that stayed.
    """

    before: int
    after: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PassView:
    """One run of one pass, in the order of the pipeline.

    Attributes:
        name: of the pass.
        about: the first sentence of its docstring.
        start: seconds from the start of the first pass.
        seconds: that it took.
        before: ops before it.
        after: ops after it.
        rewrites: those that it applied, as ``#12 fuse-qk-norm at ...``.
        hunks: what it changed; empty where nothing.
    """

    name: str
    about: str
    start: float
    seconds: float
    before: int
    after: int
    rewrites: tuple[str, ...] = ()
    hunks: tuple[Hunk, ...] = ()


@dataclass(frozen=True)
class NodeView:
    """One op of a graph.

    Attributes:
        op: what it is called.
        text: number of its line.
        module: path of the module that it is from.
        source: lines of the user's program, the first where it is from.
        bytes: that it moves at least.
        flops: that it does at least.
        group: what colours it: the number, in `ProgramView.groups`, of what it was fused into;
            -1 where it stands alone.
        piece: number of the piece that it runs in; -1 before there are any.
        kernels: symbols of the kernels that do it.
        x: place across, in columns.
        y: place down, in rows.
    """

    op: str
    text: int
    module: str
    source: tuple[str, ...]
    bytes: int
    flops: int
    group: int
    piece: int
    kernels: tuple[str, ...]
    x: float
    y: int


@dataclass(frozen=True)
class GraphView:
    """A func as a graph: ``edges`` are pairs of numbers of nodes, from what makes to what reads."""

    title: str
    nodes: tuple[NodeView, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Group:
    """Ops that became one: the kind of the fusion, which has one colour, and its place."""

    kind: str
    where: str


@dataclass(frozen=True)
class KernelView:
    """A kernel, what is known of it, and its source; empty where it is not ours.

    Attributes:
        record: as the report has it.
        language: ``cpp``, ``cuda``, ``python`` (Triton), or empty.
        source: as generated.
        ptx: what became of one for a GPU; empty where there is none.
    """

    record: KernelRecord
    language: str
    source: str
    ptx: str = ""


@dataclass(frozen=True)
class LayerView:
    """What one layer costs.

    Attributes:
        name: path of its module, as far as its number; empty for what is in none.
        eager: ops, bytes and flops of the program as captured: each op is a launch.
        compiled: launches, bytes and flops as compiled.
        seconds: measured, where there are samples: the sum of the medians of its steps.
        floor: seconds that the compiled ops take at least, where the speed of the machine is known.
    """

    name: str
    eager: tuple[int, int, int]
    compiled: tuple[int, int, int]
    seconds: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class StepView:
    """A step of the plan.

    Attributes:
        label: what it does.
        symbol: the kernel that it calls; empty where torch does it.
        where: place in the model.
        kind: who does it.
        seconds: of each sample.
        floor: seconds that its op takes at least, where no other step does a part of it, and the
            speed of the machine is known.
    """

    label: str
    symbol: str
    where: str
    kind: Literal["native", "library", "torch"]
    seconds: tuple[float, ...] = ()
    floor: float | None = None


@dataclass(frozen=True)
class BufferView:
    """Memory that a value has for some of the steps.

    Attributes:
        name: of the value.
        type: its type.
        kind: ``temp`` lies in the arena, ``output`` is handed out, ``host`` is made by torch.
        offset: where in the arena; 0 for other kinds.
        bytes: how much.
        steps: those from its making to its last reading.
    """

    name: str
    type: str
    kind: Literal["temp", "output", "host"]
    offset: int
    bytes: int
    steps: Span


@dataclass(frozen=True)
class MemoryView:
    """The memory plan: values over steps, the arena that holds temporaries, and weights."""

    buffers: tuple[BufferView, ...]
    arena: int
    weights: int
    outputs: int


@dataclass(frozen=True)
class ProgramView:
    """One compiled func for one target; what is not known yet is empty.

    Attributes:
        name: of the func.
        target: as ``cpu`` or ``sm_90``.
        options: those of the compilation that were given.
        lines: the lines of all its texts.
        imported: its text before all passes, by numbers of lines.
        final: the same after them.
        passes: all runs of passes.
        graphs: before all passes, and after them.
        groups: what ops became parts of.
        sites: fused and missed.
        kernels: those of the plan.
        layers: what each costs.
        steps: of the plan.
        memory: None where there is no plan.
        sizes: what the symbols were.
        unknown: sizes that costs depend on and nobody gave, as only the data tells them: these
            count as the least that they may be.
        seconds: of each stage of the compilation.
        calls: seconds of whole calls, by what was called: ``eager``, ``compiled``.
        machine: what floors are by, in words; empty where there are none.
        floor: seconds that a run takes at least; None where it depends on sizes that nobody gave.
    """

    name: str
    target: str
    options: Mapping[str, str]
    lines: tuple[str, ...]
    imported: tuple[int, ...]
    final: tuple[int, ...]
    passes: tuple[PassView, ...]
    graphs: tuple[GraphView, ...]
    groups: tuple[Group, ...]
    sites: tuple[Site, ...]
    kernels: tuple[KernelView, ...]
    layers: tuple[LayerView, ...]
    steps: tuple[StepView, ...]
    memory: MemoryView | None
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]
    calls: Mapping[str, tuple[float, ...]]
    machine: str = ""
    floor: float | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageView:
    """All of a page: what it is of, by which versions, and the programs."""

    title: str
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    programs: tuple[ProgramView, ...]
