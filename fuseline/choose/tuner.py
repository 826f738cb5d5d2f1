"""Measures ways of doing an op on the device at hand, and keeps what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from fuseline import errors
from fuseline.build_gpu import Candidate, needs_building
from fuseline.choose.cases import Case, about, bound
from fuseline.choose.decision import Decision, Form, Table
from fuseline.choose.timing import Budget, Run, Samples, Timer, fastest, measure
from fuseline.codegen.lower import Launch
from fuseline.ir.layout import LayoutMap
from fuseline.report import Option
from fuseline.runtime.graphs.recorder import first_line

JOINED = " | "
"""Between the labels of the launches of one way."""

FEW = 3
"""Configurations of a launch that are timed, with ``tune="auto"``."""

EVERY = "all"
"""In the key of a decision: all configurations were timed."""

SPENT = "the time for measuring is spent"


@dataclass(frozen=True)
class Way:
    """One way of doing an op.

    Attributes:
        form: what kind of way.
        label: names it among the others.
        launches: what it is done by; by the reference, where there are none.
        kernels: the binaries of launches that have kernels of ours, by place.
        varied: the places that set it apart from the first way.
    """

    form: Form
    label: str
    launches: tuple[Launch, ...]
    kernels: Mapping[int, Candidate]
    varied: tuple[int, ...] = ()

    @classmethod
    def of_kernels(
        cls, case: Case, kernels: Mapping[int, Candidate], varied: tuple[int, ...] = ()
    ) -> Way:
        """By kernels of ours; those that are varied name it, or all of them."""
        launches: list[Launch] = []
        names: list[str] = []
        for place in case.places:
            made = kernels.get(place)
            launches.append(made.launch if made else case.item.launches[place])
            if made and (place in varied or not varied):
                symbols = [n.kernel.symbol for n in case.options(place)]
                names.append(case.labels(place)[symbols.index(made.binary.symbol)])
        return cls("kernels", JOINED.join(names), tuple(launches), dict(kernels), varied)

    @staticmethod
    def needs(launch: Launch) -> bool:
        """Whether a launch has a kernel of ours."""
        return needs_building(launch)


class Bench(Protocol):
    """Where ways are run: a device with its kernels."""

    @property
    def timer(self) -> Timer:
        """What times work there."""
        ...

    def room(self) -> int:
        """Bytes of memory that operands may take."""
        ...

    def nbytes(self, case: Case, layouts: LayoutMap, values: Mapping[str, int]) -> int:
        """Bytes that an op's operands and results take."""
        ...

    def runs(
        self, case: Case, layouts: LayoutMap, values: Mapping[str, int], ways: Sequence[Way]
    ) -> dict[str, Run]:
        """A callable for each way by its label, on operands that are made here."""
        ...


class Tuner:
    """Decides by measuring.

    Args:
        table: where decisions are kept.
        bench: where to measure; None where the table alone is asked.
        budget: seconds that it may take.
        most: configurations of a launch that are timed; all, where that is None.
        idle: why there is no bench, where there is none.

    """

    def __init__(
        self,
        table: Table,
        bench: Bench | None,
        budget: Budget,
        most: int | None = FEW,
        idle: str = "a graph is being captured",
    ) -> None:
        self.table, self.bench, self.budget, self.most = table, bench, budget, most
        self.idle = idle

    def known(self, case: Case, layouts: LayoutMap) -> Decision | None:
        """An earlier decision on a case."""
        if not case.whole or not case.choosable:
            return None
        symbols = [{n.kernel.symbol for n in case.options(p)} for p in case.choosable]

        def fits(decision: Decision) -> bool:
            if decision.form != "kernels":
                return decision.form != "library" or bool(case.instead)
            pairs = zip(decision.kernels, symbols, strict=False)
            return len(decision.kernels) == len(symbols) and all(k in s for k, s in pairs)

        factors = about(case, layouts, layouts.func.symbols)
        timed = dict.fromkeys([EVERY, self._timed(case)])
        found = (self.table.get({**factors, "timed": each}, fits) for each in timed)
        return next(filter(None, found), None)

    def _timed(self, case: Case) -> int | str:
        """How many configurations of a launch a decision is made from, for its key: one among a few
        does not stand for one among all.
        """
        options = max(len(case.options(place)) for place in case.choosable)
        return EVERY if self.most is None or options <= self.most else self.most

    def hindrance(self, case: Case, layouts: LayoutMap) -> str:
        """Why a case cannot be measured; empty where it can."""
        if self.bench is None:
            return self.idle
        if self.budget.left <= 0:
            return SPENT
        values = bound(case, case.span.middle, layouts.func.symbols)
        nbytes = self.bench.nbytes(case, layouts, values)
        if nbytes > self.bench.room():
            return f"its operands take {nbytes / 2**30:.1f} GiB"
        return ""

    def clocked(self) -> AbstractContextManager[None]:
        """What is done within takes of the budget."""
        return nullcontext() if self.bench is None else self.budget.clocked(self.bench.timer)

    def decide(
        self, case: Case, ways: Sequence[Way], layouts: LayoutMap
    ) -> tuple[Decision, Way] | str:
        """The fastest way, which is noted in the table; or why none was measured."""
        if self.bench is None or self.budget.left <= 0:
            return self.idle if self.bench is None else SPENT
        size = case.span.middle
        values = bound(case, size, layouts.func.symbols)
        try:
            runs = self.bench.runs(case, layouts, values, ways)
            found = measure(self.bench.timer, runs, self.budget)
        except (RuntimeError, errors.FuselineError) as error:  # out of memory, say
            return first_line(error)
        if found is None:
            return SPENT
        if all(s.failed for s in found.values()):
            return next(iter(found.values())).failed
        way = _best(case, ways, found)
        options = tuple(
            Option(name, None if s.failed else round(1e6 * s.median, 3), s.failed)
            for each in ways
            for name, s in [(each.label, found[each.label])]
        )
        rounds = max(len(s.seconds) for s in found.values())
        kernels = tuple(
            way.kernels[p].binary.symbol for p in case.choosable if way.form == "kernels"
        )
        decision = Decision(way.form, kernels, options, size, rounds)
        factors = about(case, layouts, layouts.func.symbols)
        self.table.put({**factors, "timed": self._timed(case)}, decision)
        return decision, way


def _best(case: Case, ways: Sequence[Way], found: Mapping[str, Samples]) -> Way:
    """The fastest way; of kernels of ours, with the fastest configuration of each launch."""
    named = {way.label: way for way in ways}
    best, first = named[fastest(found)], ways[0]
    if best.form != "kernels" or found[first.label].failed:
        return best
    kernels = dict(first.kernels)
    for place in case.choosable:
        alike = [way.label for way in ways if way is first or way.varied == (place,)]
        kernels[place] = named[fastest({n: found[n] for n in alike})].kernels[place]
    return Way.of_kernels(case, kernels)


__all__ = ["EVERY", "FEW", "JOINED", "Bench", "Tuner", "Way"]
