"""One program of a page: what is known of it so far, told by whoever compiles it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from fuseline.debug.cost import Account
from fuseline.debug.machine import Machine
from fuseline.debug.page import plans
from fuseline.debug.page.data import Group, KernelView, LayerView, MemoryView, ProgramView, StepView
from fuseline.debug.page.floors import Floors
from fuseline.debug.page.graph import Drawn, drawn
from fuseline.debug.page.groups import groups_of
from fuseline.debug.page.observe import Watch
from fuseline.debug.page.plans import Planned
from fuseline.header import kind_of
from fuseline.ir.core import Func, Op
from fuseline.passes.record import Run
from fuseline.report import KernelRecord, Site, layer_of
from fuseline.runtime.plan import Step

BEFORE, AFTER = "before all passes", "after all passes"

_Three = tuple[int, int, int]


@dataclass(frozen=True)
class Made:
    """What became of a func after its passes.

    Attributes:
        planned: its plan.
        records: what the report says of its kernels.
        sources: of the kernels, by symbol.
        ptx: what became of those for a GPU.
        sites: with the kernels that do them.
        seconds: of each stage.
        threads: that steps may use.
    """

    planned: Planned
    records: Sequence[KernelRecord]
    sources: Mapping[str, str]
    ptx: Mapping[str, str]
    sites: Sequence[Site]
    seconds: Mapping[str, float]
    threads: int


@dataclass
class Program:
    """A func on its way through the passes, and what is made of it; gives a `ProgramView`.

    Attributes:
        name: of the func.
        target: what it is compiled for.
        sizes: what symbols were in the example.
        options: those of the compilation that were given.
        watch: the observer of its passes.
        samples: seconds of each step, in the order of the plan.
        calls: seconds of whole calls, by what was called.
        machine: what floors of time are by.
    """

    name: str
    target: str
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    watch: Watch = field(default_factory=Watch)
    samples: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    calls: dict[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    machine: Machine | None = None
    _imported: tuple[int, ...] = ()
    _drawn: list[Drawn] = field(default_factory=list[Drawn])
    _groups: tuple[Group, ...] = ()
    _of: Mapping[Op, int] = field(default_factory=dict[Op, int])
    _sites: tuple[Site, ...] = ()
    _unknown: set[str] = field(default_factory=set[str])
    _eager: Mapping[str, _Three] = field(default_factory=dict[str, _Three])
    _compiled: Mapping[str, _Three] = field(default_factory=dict[str, _Three])
    _kernels: tuple[KernelView, ...] = ()
    _steps: tuple[StepView, ...] = ()
    _numbers: Mapping[int, int] = field(default_factory=dict[int, int])
    _layers: Sequence[str] = ()
    _floors: Floors = field(default_factory=Floors)
    _memory: MemoryView | None = None
    _seconds: Mapping[str, float] = field(default_factory=dict[str, float])

    def start(self, func: Func) -> None:
        """The func before all passes."""
        self.watch.start(func)
        self._imported = self.watch.text
        account = Account(func, self.sizes)
        self._drawn = [drawn(func, BEFORE, self.watch.lines, account)]
        self._eager = _by_layer(func, account)
        self._unknown = set[str]().union(*map(account.unknown, func.ops))

    def passed(self, run: Run) -> None:
        """All passes have run, or as many as did."""
        account = Account(run.func, self.sizes)
        before = self._drawn[0]
        self._sites = tuple(run.sites())
        lineage = self.watch.lineage
        self._groups, self._of = groups_of(run, before.ops, lineage, account)
        after = drawn(run.func, AFTER, self.watch.lines, account)
        self._drawn = [each.coloured(self._of) for each in (before, after)]
        self._compiled = _by_layer(run.func, account)
        self._unknown.update(*map(account.unknown, run.func.ops))

    def made(self, made: Made) -> None:
        """Its kernels are there, and its plan."""
        planned = made.planned
        func = planned.func
        value = planned.at(self.sizes, made.threads)
        account = Account(func, self.sizes)
        after = drawn(func, AFTER, self.watch.lines, account)
        pieces, kernels = plans.pieces_of(planned, value), plans.kernels_of(planned)
        after = after.coloured(self._of).run_by(pieces, kernels)
        self._drawn = [replace(self._drawn[0], ops=()), replace(after, ops=())]
        self._of = {}
        launches = plans.launches_of(planned, value)
        self._compiled = _with_launches(self._compiled, launches)
        self._floors = Floors.of(planned, launches, account)
        self._kernels = tuple(
            _kernel(record, made.sources.get(record.symbol, ""), made.ptx.get(record.symbol, ""))
            for record in made.records
        )
        self._steps = plans.step_views(planned)
        self._numbers = {id(step): i for i, step in enumerate(planned.plan.steps)}
        self._layers = [_layer(op) for op in planned.owners]
        self._memory = plans.memory_of(planned, value)
        self._sites, self._seconds = tuple(made.sites), dict(made.seconds)
        self.watch.lineage.forget()

    def sampled(self, step: Step, seconds: float) -> None:
        """A step of the plan, which its program holds, has run."""
        self.samples.setdefault(self._numbers[id(step)], []).append(seconds)

    def view(self) -> ProgramView:
        """What is known of the program."""
        return ProgramView(
            name=self.name,
            target=self.target,
            options=dict(self.options),
            lines=self.watch.lines.texts,
            imported=self._imported,
            final=self.watch.text,
            passes=tuple(self.watch.passes),
            graphs=tuple(each.view for each in self._drawn),
            groups=self._groups,
            sites=self._sites,
            kernels=self._kernels,
            layers=self._layer_views(),
            steps=tuple(
                replace(
                    step,
                    seconds=tuple(self.samples.get(i, ())),
                    floor=self._floors.step(i, self.machine) if i in self.samples else None,
                )
                for i, step in enumerate(self._steps)
            ),
            memory=self._memory,
            sizes=dict(self.sizes),
            unknown=tuple(sorted(self._unknown)),
            seconds=self._seconds,
            calls=dict(self.calls),
            machine=str(self.machine or ""),
            floor=self._floors.whole(self.machine),
        )

    def _layer_views(self) -> tuple[LayerView, ...]:
        seconds: dict[str, float] = {}
        for number, found in self.samples.items():
            layer = self._layers[number]
            seconds[layer] = seconds.get(layer, 0.0) + median(found)
        none = (0, 0, 0)
        return tuple(
            LayerView(
                name,
                self._eager.get(name, none),
                self._compiled.get(name, none),
                seconds.get(name),
                self._floors.layer(name, self.machine),
            )
            for name in {**self._eager, **self._compiled}
        )


def _layer(op: Op) -> str:
    return layer_of(op.loc.module if op.loc is not None else "")


def _by_layer(func: Func, amounts: Callable[[Op], tuple[int, int]]) -> dict[str, _Three]:
    """How many ops of each layer move or compute anything, and how much."""
    found: dict[str, _Three] = {}
    for op in func.ops:
        moved, flops = amounts(op)
        if moved or flops:
            ops, all_moved, all_flops = found.get(_layer(op), (0, 0, 0))
            found[_layer(op)] = (ops + 1, all_moved + moved, all_flops + flops)
    return found


def _with_launches(costs: Mapping[str, _Three], launches: Mapping[Op, int]) -> dict[str, _Three]:
    """The costs of layers, with launches in the place of ops."""
    found: dict[str, int] = {}
    for op, count in launches.items():
        found[_layer(op)] = found.get(_layer(op), 0) + count
    return {
        name: (found.get(name, 0), *costs.get(name, (0, 0, 0))[1:]) for name in {**costs, **found}
    }


def _kernel(record: KernelRecord, source: str, ptx: str) -> KernelView:
    return KernelView(record, _LANGUAGES[kind_of(source)] if source else "", source, ptx)


_LANGUAGES = {"py": "python", "cu": "cuda", "cpp": "cpp"}

__all__ = ["Made", "Program"]
