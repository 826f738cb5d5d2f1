"""The Dynamo backend: captures each graph, has it compiled, and keeps account."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, fx

from fuseline import _torch
from fuseline.errors import OverlapError
from fuseline.frontend.data_sizes import depends_on_data
from fuseline.frontend.dynamo import capture_dynamo
from fuseline.frontend.execute import CompileStep, Ran, finish
from fuseline.frontend.floats import float_inputs
from fuseline.frontend.importer import CannotImport, DependsOnData
from fuseline.frontend.loops import chooses, ends_by_data, source_of, untraced
from fuseline.frontend.names import Names
from fuseline.frontend.record import NotSimple
from fuseline.frontend.traced_turns import Judge, unproven
from fuseline.frontend.warm import keep
from fuseline.report import BREAK, EAGER_CALLS, LEFT, LIMIT, PLAIN, Report, Site, Stat

log = logging.getLogger(__name__)

Runnable: TypeAlias = Callable[..., Any]

WITH_GRADIENTS = "gradients are on, and fuseline compiles for inference"


@dataclass
class Backend:
    """One program's backend: what ``torch.compile`` calls with each graph that Dynamo finds.

    Attributes:
        step: compiles a captured program.
        name: of the program, for dumps and reports.
        graphs: how many graphs came.
        names: what the user calls modules and arguments; None to keep Dynamo's names.
        plain: graphs that run through plain ATen, with the reason.
        breaks: reasons of Dynamo's graph breaks, with their counts.
        left: how many functions with graph breaks Dynamo left to run in eager as a whole.
        limits: options of torch by which Dynamo refused to compile again, with the counts.
        chooses: whether a graph chooses the best of several, as a router does.
        causes: where graphs ended because of what a tensor holds, each place once, and why.
        loops: what looked like a loop over experts in a graph that was given up, by place.
        eager_calls: calls since then for which no graph fitted.
        ran: whether a graph ran in a call.
        on_plain: told of every call that torch runs as it is, by name, and why; may refuse it.
        on_break: told where a graph ended before its function returned, and why.
    """

    step: CompileStep
    name: str = "main"
    graphs: int = 0
    names: Names | None = None
    plain: dict[str, str] = field(default_factory=dict[str, str])
    breaks: dict[str, int] = field(default_factory=dict[str, int])
    left: int = 0
    limits: dict[str, int] = field(default_factory=dict[str, int])
    chooses: bool = False
    causes: dict[str, _torch.Break] = field(default_factory=dict[str, _torch.Break])
    loops: dict[str, Site] = field(default_factory=dict[str, Site])
    eager_calls: int = 0
    ran: Ran = field(default_factory=Ran)
    on_plain: Callable[[str, str], None] = lambda name, reason: None
    on_break: Callable[[str, str], None] = lambda where, reason: None

    def __call__(self, module: fx.GraphModule, inputs: Sequence[object]) -> Runnable:
        """The function that runs a graph from Dynamo; ``inputs`` are the values it came with."""
        name = self.name if not self.graphs else f"{self.name}_{self.graphs}"
        self.graphs += 1
        self.chooses |= chooses(module)
        if reason := unproven(module.graph, _torch.traced_turns()):
            return self._trace_again(name, reason)
        if not torch.is_grad_enabled() or not any(_wants_gradient(v) for v in inputs):
            return self._runnable(module, inputs, name)
        inner = _without_gradients(module)
        if inner is None:
            return self._run_plain(module, name, WITH_GRADIENTS)
        with torch.no_grad():
            run = self._runnable(inner, inputs, name)

        def call(*arguments: Any) -> Any:  # nothing of `run` is kept for other processes
            with torch.no_grad():
                return run(*arguments)

        return call

    def _runnable(self, module: fx.GraphModule, inputs: Sequence[object], name: str) -> Runnable:
        if self.names is not None:
            self.names.rename(module)
        floats = float_inputs(module)
        if not floats:
            return self.compile(module, inputs, name, {})
        return _ByFloats(self, module, name, floats)

    def compile(
        self, module: fx.GraphModule, inputs: Sequence[object], name: str, known: dict[fx.Node, Any]
    ) -> Runnable:
        """Compile a graph in which some nodes have values that are ``known``."""
        try:
            captured = capture_dynamo(module, inputs, name=name, known=known)
        except NotSimple as reason:
            return self._run_plain(module, name, str(reason))
        try:
            compiled = self.step(captured)
        except CannotImport as reason:
            if isinstance(reason, DependsOnData):
                self.loops |= {site.where: site for site in reason.missed}
            return self._run_plain(module, name, str(reason))
        run = finish(captured.owed, compiled, self.ran)
        if captured.writes:
            run = self._or_in_order(run, module if known else _without_notes(module), name)
        keep(run, captured.owed, compiled)
        return run

    def _run_plain(self, module: fx.GraphModule, name: str, reason: str) -> Runnable:
        """Run a graph as it is; one with sizes that only the data tells is rather cut at them."""
        if _torch.may_break_at_sizes_of_data() and depends_on_data(module):
            self._trace_again(name, reason)
        self._note(name, reason)

        def call(*arguments: Any) -> Any:
            self.on_plain(name, reason)
            self.ran.yes = True
            return module(*arguments)

        return call

    def _trace_again(self, name: str, reason: str) -> NoReturn:
        log.info("%s is traced again, with breaks: %s", name, reason)
        self.graphs -= 1
        _torch.break_at_sizes_of_data(reason)

    def _or_in_order(self, run: Runnable, module: fx.GraphModule, name: str) -> Runnable:
        """A compiled program, but the graph as it came for arguments that overlap: reads and writes
        then happen in the program's order.
        """

        def call(*arguments: Any) -> Any:
            try:
                return run(*arguments)
            except OverlapError as error:
                self._note(name, str(error))
                self.on_plain(name, str(error))
                with torch.no_grad():
                    return module(*arguments)

        return call

    def _note(self, name: str, reason: str) -> None:
        if reason not in self.plain.values():  # said once, however many graphs it concerns
            log.warning("%s runs through plain ATen: %s", name, reason)
            self.plain[name] = reason

    def note_breaks(self, reasons: dict[str, int], places: Sequence[_torch.Break]) -> None:
        """Account for graph breaks."""
        for place in filter(ends_by_data, places):
            self.causes.setdefault(source_of(place), place)
        for reason, count in reasons.items():
            self.breaks[reason] = self.breaks.get(reason, 0) + count
        told = [(source_of(p), p.reason) for p in places]
        for where, reason in told or [("", r) for r in reasons]:
            self.on_break(where, _first_line(reason))

    def note_left(self, count: int) -> None:
        """Account for functions that Dynamo left as they are, as it does where a graph would end
        within a loop.
        """
        if self.breaks:  # else there was nothing in them to compile
            self.left += count

    def note_limit(self, option: str) -> None:
        """Account for a function that Dynamo will not compile again."""
        self.limits[option] = self.limits.get(option, 0) + 1

    def called(self) -> None:
        """Account for a call that has ended; `ran` was reset before it."""
        if self.limits and not self.ran.yes:
            self.eager_calls += 1
            self.on_plain(self.name, f"torch compiles it no more, see {', '.join(self.limits)}")
        elif self.left and not self.ran.yes:
            reasons = "; ".join(map(_first_line, self.breaks))
            self.on_plain(self.name, f"torch compiles nothing of it ({reasons})")

    def report(self) -> Report:
        """The numbers of graphs and of graph breaks, and what is not compiled, and why."""
        stats: dict[str, Stat] = {"graphs": self.graphs, "graph breaks": sum(self.breaks.values())}
        stats |= {f"{BREAK}{_first_line(r)}": n for r, n in self.breaks.items()}
        if self.left:
            stats[LEFT] = self.left
        stats |= {f"{PLAIN}{n}": _first_line(r) for n, r in self.plain.items()}
        stats |= {f"{LIMIT}{o}": n for o, n in self.limits.items()}
        if self.limits:
            stats[EAGER_CALLS] = self.eager_calls
        return Report(sites=tuple(self._missed()), stats=stats)

    def _missed(self) -> list[Site]:
        """What is in no graph as data decides, and loops over experts that run as they are."""
        found = [untraced(c, chosen=self.chooses) for c in self.causes.values()]
        sites = [site for site in found if site is not None]
        if not any(site.pattern == "moe" for site in sites):
            return [*sites, *self.loops.values()]
        said = "; ".join(dict.fromkeys(site.reason for site in self.loops.values()))
        if not said:
            return sites
        return [
            replace(s, reason=f"{s.reason}; as one graph: {said}") if s.pattern == "moe" else s
            for s in sites
        ]


def _without_gradients(module: fx.GraphModule) -> fx.GraphModule | None:
    """What a graph does with gradients off, if that is the first thing it does and holds to its end
    (as of a ``forward`` under ``torch.no_grad``); else None.
    """
    graph = fx.Graph()
    output = graph.graph_copy(module.graph, {})
    calls = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr")]
    modes = [n for n in calls if _torch.is_grad_mode(n)]
    around = len(modes) == 2 and modes == [calls[0], calls[-1]]
    if not around or not _torch.turns_gradients_off(modes[0]):
        return None
    graph.output(output)
    for node in reversed(modes):
        graph.erase_node(node)
    return fx.GraphModule(module, graph)


class _ByFloats:
    """A graph whose Python floats became inputs: compiled anew for each set of their values.

    ``torch.compile(dynamic=True)`` makes symbols of float attributes such as an epsilon; they are
    constants in truth, and as such they can be matched and folded.
    """

    def __init__(
        self, backend: Backend, module: fx.GraphModule, name: str, floats: dict[int, fx.Node]
    ) -> None:
        self.backend = backend
        self.module = module
        self.name = name
        self.floats = floats
        self.variants: dict[tuple[float, ...], Runnable] = {}

    def __call__(self, *arguments: Any) -> Any:
        values = tuple(float(arguments[i]) for i in self.floats)
        run = self.variants.get(values)
        if run is None:
            name = f"{self.name}_{len(self.variants)}" if self.variants else self.name
            known: dict[fx.Node, Any] = dict(zip(self.floats.values(), values, strict=True))
            run = self.backend.compile(self.module, arguments, name, known)
            self.variants[values] = run
        return run(*arguments)


def _without_notes(module: fx.GraphModule) -> fx.GraphModule:
    """A graph that is kept to be run: what tracing has noted of its calls takes most memory."""
    for node in module.graph.nodes:
        if node.op != "placeholder":  # Dynamo still looks at those
            node.meta.clear()
    return module


def _wants_gradient(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _first_line(reason: str) -> str:
    return reason.strip().split("\n", 1)[0]


def watch(backend: Backend, on_start: Callable[[], None]) -> _torch.CompileWatch:
    """A context for calls of a program: what Dynamo compiles inside is accounted to its backend."""
    return _torch.CompileWatch(
        on_start, backend.note_breaks, backend.note_limit, backend.note_left, Judge(), backend
    )
