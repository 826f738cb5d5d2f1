"""An op at a range of sizes: the launches that run there, and the options of each."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import sympy

from fuseline.build_gpu import Candidate, needs_building
from fuseline.choose.decision import as_json
from fuseline.choose.inputs import ties
from fuseline.choose.model import Facts, mean, seconds
from fuseline.choose.sizes import Span, binding, counted, spans, value_of
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.library import LibraryKernel
from fuseline.codegen.lower import Emitted, Launch, Scratch
from fuseline.codegen.targets import Target
from fuseline.ir.core import Op, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.types import Dim, Range, dim, free_symbols
from fuseline.runtime.cache import Json


@dataclass(frozen=True)
class Case:
    """An op at a range of sizes.

    Attributes:
        item: the op and all of its launches.
        count: what the range counts.
        span: the range.
        places: the numbers of the launches that run there.
        whole: whether these do all of the op's work; not where launches count different things.
    """

    item: Emitted
    count: Dim
    span: Span
    places: tuple[int, ...]
    whole: bool = True

    def options(self, place: int) -> tuple[Launch, ...]:
        """The configurations of a launch, the likelier first."""
        launch = self.item.launches[place]
        return (launch, *launch.others)

    @property
    def sizes(self) -> str:
        """The range in words."""
        return str(self.span) if isinstance(self.count, int) else f"{self.count}: {self.span}"

    @property
    def choosable(self) -> tuple[int, ...]:
        """The launches that have a kernel of ours."""
        return tuple(p for p in self.places if needs_building(self.item.launches[p]))

    @property
    def instead(self) -> tuple[Launch, ...]:
        """What libraries do in the place of all launches; nothing, where they do not."""
        given = (self.item.launches[p].instead for p in self.places)
        return next(filter(None, given), ()) if self.whole else ()

    @property
    def instead_label(self) -> str:
        """What the way of those is called."""
        library = any(isinstance(n.kernel, LibraryKernel) for n in self.instead)
        return "torch's library" if library else "one kernel for each step"

    def labels(self, place: int) -> tuple[str, ...]:
        """What sets each configuration of a launch apart from the others."""
        found = labels([option.kernel for option in self.options(place)])
        if len(self.choosable) < 2:
            return found
        family, number = self.item.launches[place].kernel.family, self.choosable.index(place) + 1
        return tuple(f"{number} {family}: {label}" for label in found)


def cases_of(item: Emitted, symbols: Mapping[str, Range]) -> list[Case]:
    """The cases of an op, which cover all sizes."""
    whens = [launch.when for launch in item.launches]
    count = counted(item.op, whens)
    if count is None:
        return [
            Case(item, when[0] if when else 1, Span(*when[1:]) if when else Span(1, 1), (i,), False)
            for i, when in enumerate(whens)
        ]
    found: list[Case] = []
    for span in spans(count, whens, symbols):
        places = [
            i for i, when in enumerate(whens) if when is None or span.first in Span(*when[1:])
        ]
        found.append(Case(item, count, span, tuple(places)))
    return found


def estimate(
    case: Case,
    launch: Launch,
    built: Candidate | None,
    target: Target,
    symbols: Mapping[str, Range],
) -> float:
    """Seconds of a configuration by the model: the mean over both ends of the range."""
    registers = shared = None
    if built is not None:
        registers = built.binary.resources["registers"]
        shared = built.binary.shared_memory + built.binary.resources["static_shared_memory"]
    warps = getattr(launch.kernel, "warps", 1) if built is None else built.binary.warps
    stages = getattr(launch.kernel, "stages", 1)
    moved = case.item.op.cost().bytes
    times: list[float] = []
    for size in case.span.ends:
        values = bound(case, size, symbols)
        blocks = 1
        for extent in launch.grid:
            blocks *= value_of(extent, values)
        facts = Facts(blocks, warps, stages, value_of(moved, values), registers, shared)
        times.append(seconds(facts, target))
    return mean(times)


def bound(case: Case, size: int, symbols: Mapping[str, Range]) -> dict[str, int]:
    """Values of all symbols for a count of a case."""
    values = binding(case.count, size, symbols)
    inside = free_symbols(case.count)
    for pair in ties(case.item.op):
        for one, other in (pair, pair[::-1]):
            if isinstance(other, sympy.Symbol) and other.name not in inside:
                values[other.name] = value_of(one, values)
                break
    return values


def labels(kernels: Sequence[KernelTemplate]) -> tuple[str, ...]:
    """What sets kernels of one launch apart: the fields in which those of a family differ, behind
    the family where there are several.
    """
    families = {k.family: [n for n in kernels if n.family == k.family] for k in kernels}
    if len(families) < 2:
        return _labels_of_family(kernels)
    own = {name: iter(_labels_of_family(alike)) for name, alike in families.items()}
    return tuple(f"{k.family} {next(own[k.family])}" for k in kernels)


def _labels_of_family(kernels: Sequence[KernelTemplate]) -> tuple[str, ...]:
    names = [f.name for f in dataclasses.fields(kernels[0]) if f.name != "hints"]
    differing = [n for n in names if len({str(getattr(k, n)) for k in kernels}) > 1]
    shown = differing or [n for n in ("warps",) if n in names]
    found = [", ".join(f"{n} {getattr(k, n)}" for n in shown) for k in kernels]
    if len(set(found)) < len(found):
        return tuple(k.symbol for k in kernels)
    return tuple(label or k.family for label, k in zip(found, kernels, strict=True))


def likeness(item: Emitted, layouts: LayoutMap) -> Hashable:
    """What ops have in common that the same is decided for: all that a launch depends on."""
    return (type(item.op), _operands(item.op, layouts), tuple(map(_launch_key, item.launches)))


def _operands(op: Op, layouts: LayoutMap) -> tuple[tuple[str, int, str, Layout], ...]:
    """Types and places of an op's operands and results, and which of them share memory."""
    roots: dict[Value, int] = {}
    found: list[tuple[str, int, str, Layout]] = []
    for value in (*op.operands, *op.results):
        place = layouts[value]
        number = roots.setdefault(place.root, len(roots))
        found.append((str(value.type), number, str(place.root.type), place.layout))
    return tuple(found)


def _launch_key(launch: Launch) -> Hashable:
    instead = tuple((n.kernel.symbol, n.grid, n.dims) for n in launch.instead)
    options = tuple((n.kernel.symbol, n.grid, n.dims) for n in (launch, *launch.others))
    return options, launch.when, launch.work, instead, _kinds(launch)


def _kinds(launch: Launch) -> tuple[Hashable, ...]:
    """Of each buffer whether it is a value, scratch, and how much."""
    return tuple(
        ("scratch", b.nbytes) if isinstance(b, Scratch) else b is not None for b in launch.buffers
    )


def about(case: Case, layouts: LayoutMap, symbols: Mapping[str, Range]) -> dict[str, Json]:
    """What a decision is about, for its key: everything with the numbers that were measured."""
    item, values = case.item, bound(case, case.span.middle, symbols)
    launches: list[Json] = []
    for place in case.places:
        for option in (*case.options(place), *item.launches[place].instead):
            numbers = [value_of(v, values) for v in (*option.grid, *option.dims)]
            launches.append([option.kernel.symbol, _source(option.kernel), *numbers])
    operands: list[Json] = [as_json(operand) for operand in _operands(item.op, layouts)]
    return {
        "name": f"{item.op.name}, {case.sizes}",
        "op": item.op.name,
        "sizes": case.sizes,
        "at": dict[str, Json](values),
        "operands": operands,
        "launches": launches,
    }


@lru_cache(maxsize=4096)
def _source(kernel: KernelTemplate) -> str:
    """A digest of a kernel's source; empty for a library, which has none of ours."""
    if not hasattr(kernel, "template"):
        return ""
    return hashlib.sha256(kernel.render().encode()).hexdigest()


def within(launch: Launch, case: Case, last: Case) -> Launch:
    """A launch for the sizes from one case to another; as it is, where it runs for no others."""
    first, end = case.span.first, last.span.last
    if isinstance(case.count, int) or not case.whole:
        return launch
    return replace(launch, when=(dim(case.count), first, end), others=(), instead=())


__all__ = ["Case", "about", "bound", "cases_of", "estimate", "labels", "likeness", "within"]
