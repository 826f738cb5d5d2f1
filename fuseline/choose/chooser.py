"""Gives every launch of emitted ops one configuration for each range of sizes, and builds it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fuseline.build_gpu import Candidate, candidate
from fuseline.choose.cases import Case, bound, cases_of, estimate, likeness
from fuseline.choose.compose import Settled, configured
from fuseline.choose.decision import Decision
from fuseline.choose.pick import Picked, pick
from fuseline.choose.pool import together
from fuseline.choose.sizes import value_of
from fuseline.choose.tuner import JOINED, Tuner, Way
from fuseline.codegen.lower import Emitted, Launch
from fuseline.codegen.targets import Target
from fuseline.ir.layout import LayoutMap
from fuseline.report import Choice, ChosenBy, Option
from fuseline.runtime.cache import Cache

Built = Callable[[int, int, str], None]
"""Told how many jobs of how many are done, and the name of the latest."""


@dataclass(frozen=True)
class Chosen:
    """Emitted ops with one configuration a launch.

    Attributes:
        emitted: the ops, those that cannot run here without launches.
        candidates: what was built, by symbol.
        choices: what each kernel was chosen from, by symbol.
        failed: why kernels cannot run here, by the symbol of the first configuration.
    """

    emitted: list[Emitted]
    candidates: dict[str, Candidate]
    choices: dict[str, tuple[Choice, ...]]
    failed: dict[str, str]


class Chooser:
    """Chooses and builds.

    Args:
        cache: where binaries are kept.
        target: what to build for.
        workers: how many kernels are built at once.
        tuner: measures, where a device is at hand.
        built: told of each op that is done.

    """

    def __init__(
        self,
        cache: Cache,
        target: Target,
        *,
        workers: int = 1,
        tuner: Tuner | None = None,
        built: Built | None = None,
    ) -> None:
        self.cache, self.target, self.workers = cache, target, workers
        self.tuner, self.built = tuner, built

    def __call__(self, emitted: Sequence[Emitted], layouts: LayoutMap) -> Chosen:
        """Choose for all ops; ops that are alike, as those of repeated layers, are one job."""
        kinds: dict[Hashable, _Group] = {}
        of: list[_Group | None] = []
        for item in emitted:
            group = None
            if item.launches:
                key = likeness(item, layouts)
                if key not in kinds:
                    cases = cases_of(item, layouts.func.symbols)
                    kinds[key] = _Group(cases, [None] * len(cases))
                group = kinds[key]
                group.ops += 1
            of.append(group)
        groups = list(kinds.values())
        for group in groups:
            self._look_up(group, layouts)
        self._build(groups, layouts)
        if self.tuner is not None:
            self._tune(self.tuner, groups, layouts)
        return self._gathered(emitted, of)

    # -- by the table -----------------------------------------------------------------------------

    def _look_up(self, group: _Group, layouts: LayoutMap) -> None:
        """What was measured earlier."""
        if self.tuner is not None:
            for number, case in enumerate(group.cases):
                group.decisions[number] = self.tuner.known(case, layouts)

    # -- by the model -----------------------------------------------------------------------------

    def _build(self, groups: Sequence[_Group], layouts: LayoutMap) -> None:
        """Build what is decided, and what the model says of the rest."""
        wanted = [g for g in groups if any(case.choosable for case in g.cases)]

        def done(number: int) -> None:
            nonlocal count
            count += 1
            if self.built is not None:
                item = wanted[number].cases[0].item
                self.built(count, len(wanted), item.op.name)

        count = 0
        jobs = [partial(self._settle, group, layouts) for group in wanted]
        together(jobs, self.workers, done)
        for group in groups:
            if group not in wanted:
                group.settled = [Settled() for _ in group.cases]

    def _settle(self, group: _Group, layouts: LayoutMap) -> None:
        known: dict[str, Candidate | str] = {}

        def built(launch: Launch) -> Candidate | str:
            symbol = launch.kernel.symbol
            if symbol not in known:
                known[symbol] = candidate(self.cache, launch, self.target)
            made = known[symbol]
            return made if isinstance(made, str) else replace(made, launch=launch)

        for case, decision in zip(group.cases, group.decisions, strict=True):
            settled = self._decided(case, decision, built) if decision else None
            group.settled.append(settled or self._modelled(case, built, layouts))

    def _decided(
        self, case: Case, decision: Decision, build: Callable[[Launch], Candidate | str]
    ) -> Settled | None:
        """What a decision of the table says; none where its kernels cannot be built after all."""
        settled = Settled(decision.form)
        places = case.choosable if decision.form == "kernels" else ()
        for place, symbol in zip(places, decision.kernels, strict=False):
            launch = next(n for n in case.options(place) if n.kernel.symbol == symbol)
            made = build(launch)
            if isinstance(made, str):
                return None
            settled.kernels[place] = made
        if decision.form == "library" and not self._library(case, settled, build):
            return None
        settled.choices = _choices(case, settled, decision.options, "table")
        return settled

    def _library(
        self, case: Case, settled: Settled, build: Callable[[Launch], Candidate | str]
    ) -> bool:
        """Build what libraries' calls have around them; whether that can be."""
        for number, launch in enumerate(case.instead):
            if Way.needs(launch):
                made = build(launch)
                if isinstance(made, str):
                    return False
                settled.kernels[number] = made
        return True

    def _modelled(
        self, case: Case, build: Callable[[Launch], Candidate | str], layouts: LayoutMap
    ) -> Settled:
        """What the model says: of each launch, the first of the best configurations."""
        symbols = layouts.func.symbols
        settled = Settled()
        for place in case.choosable:

            def guess(launch: Launch, made: Candidate | None) -> float:
                if layouts.batch_invariant:  # the first that the target holds, for all sizes
                    return 0.0
                return estimate(case, launch, made, self.target, symbols)

            picked: Picked[Candidate] = pick(case.options(place), guess, build)
            if picked.place < 0:
                settled.failed = "; ".join(picked.refused.values())
                return settled
            settled.kernels[place] = picked.built[picked.place]
            settled.choices[place] = _by_model(case, place, picked)
        return settled

    # -- by measurement ---------------------------------------------------------------------------

    def _tune(self, tuner: Tuner, groups: Sequence[_Group], layouts: LayoutMap) -> None:
        """Measure all that nothing is known of; what moves most memory in all comes first, since
        the time for measuring may end before all is measured.
        """
        waiting: list[_Open] = []
        for group in groups:
            for number, (case, settled) in enumerate(zip(group.cases, group.settled, strict=True)):
                if settled.failed or not case.choosable or group.decisions[number]:
                    continue
                if case.whole:
                    waiting.append(_Open(group, number))
                else:
                    _note(settled, "not measured: its launches count different things")
        waiting.sort(key=lambda each: each.bytes(layouts), reverse=True)
        for begin in range(0, len(waiting), self.workers):
            self._measure(tuner, waiting[begin : begin + self.workers], layouts)

    def _measure(self, tuner: Tuner, batch: Sequence[_Open], layouts: LayoutMap) -> None:
        """Build the ways of several cases at once, and measure one case after the other."""
        ready: list[_Open] = []
        for each in batch:
            if hindrance := tuner.hindrance(each.case, layouts):
                _note(each.settled, f"not measured: {hindrance}")
            else:
                ready.append(each)
        with tuner.clocked():
            every = self._ways(ready)
        for each, ways in zip(ready, every, strict=True):
            found = tuner.decide(each.case, ways, layouts)
            if isinstance(found, str):
                _note(each.settled, f"not measured: {found}")
                continue
            decision, way = found
            chosen = Settled(decision.form, dict(way.kernels))
            chosen.choices = _choices(each.case, chosen, decision.options, "measurement")
            each.group.settled[each.number] = chosen

    def _ways(self, batch: Sequence[_Open]) -> list[list[Way]]:
        """What is worth measuring of each: the model's choice, then with one launch in another of
        its best configurations, then without kernels of ours.
        """
        every = [[Way.of_kernels(each.case, each.settled.kernels)] for each in batch]
        others = [
            (ways, each, place, launch)
            for ways, each in zip(every, batch, strict=True)
            for place in each.case.choosable
            for launch in self._others(each.settled, place, each.case)
        ]
        jobs = [partial(candidate, self.cache, each[-1], self.target) for each in others]
        built = together(jobs, self.workers)
        for (ways, each, place, _), made in zip(others, built, strict=True):
            if isinstance(made, Candidate):
                kernels = each.settled.kernels | {place: made}
                ways.append(Way.of_kernels(each.case, kernels, (place,)))
        for ways, each in zip(every, batch, strict=True):
            case, instead = each.case, Settled()
            if case.instead and self._library(
                case, instead, lambda n: candidate(self.cache, n, self.target)
            ):
                ways.append(Way("library", case.instead_label, case.instead, instead.kernels))
            ways.append(Way("reference", "plain torch", (), {}))
        return every

    def _others(self, settled: Settled, place: int, case: Case) -> list[Launch]:
        """The best configurations of a launch but the chosen one."""
        options = {o.label: o for o in settled.choices[place].options}
        found = list(zip(case.labels(place), case.options(place), strict=True))
        rest = [(label, n) for label, n in found if label != settled.choices[place].chosen]
        able = [(label, n) for label, n in rest if not options[label].note]
        able.sort(key=lambda each: options[each[0]].microseconds or 0.0)
        most = self.tuner.most if self.tuner is not None else 1
        return [n for _, n in able][: None if most is None else most - 1]

    # -- the outcome ------------------------------------------------------------------------------

    def _gathered(self, emitted: Sequence[Emitted], of: Sequence[_Group | None]) -> Chosen:
        chosen = Chosen([], {}, {}, {})
        for item, group in zip(emitted, of, strict=True):
            if group is None:
                chosen.emitted.append(item)
                continue
            failed = next((s.failed for s in group.settled if s.failed), "")
            if failed:
                chosen.failed[item.launches[0].kernel.symbol] = failed
                chosen.emitted.append(Emitted(item.op, (), failed))
                continue
            chosen.emitted.append(configured(item, group.cases, group.settled))
            for settled in group.settled:
                for made in settled.kernels.values():
                    chosen.candidates[made.binary.symbol] = made
                for place, choice in settled.choices.items():
                    made = settled.kernels.get(place) if settled.form == "kernels" else None
                    symbol = made.binary.symbol if made else item.launches[place].kernel.symbol
                    before = chosen.choices.get(symbol, ())
                    if choice not in before:
                        chosen.choices[symbol] = (*before, choice)
        return chosen


@dataclass(eq=False)
class _Group:
    """Ops that are alike: their cases, what is known of each, and how many ops they are."""

    cases: list[Case]
    decisions: list[Decision | None]
    settled: list[Settled] = field(default_factory=list[Settled])
    ops: int = 0


@dataclass(frozen=True, eq=False)
class _Open:
    """A case of a group that may be measured."""

    group: _Group
    number: int

    @property
    def case(self) -> Case:
        return self.group.cases[self.number]

    @property
    def settled(self) -> Settled:
        return self.group.settled[self.number]

    def bytes(self, layouts: LayoutMap) -> int:
        """What all of the ops move."""
        values = bound(self.case, self.case.span.middle, layouts.func.symbols)
        return self.group.ops * value_of(self.case.item.op.cost().bytes, values)


def _by_model(case: Case, place: int, picked: Picked[Candidate]) -> Choice:
    names = case.labels(place)
    options = tuple(
        Option(name, round(1e6 * time, 3), picked.refused.get(i, ""))
        for i, (name, time) in enumerate(zip(names, picked.seconds, strict=True))
    )
    return Choice(case.sizes, names[picked.place], "model", options)


def _choices(
    case: Case, settled: Settled, options: Sequence[Option], by: ChosenBy
) -> dict[int, Choice]:
    """What each launch was chosen from, after a measurement: its own options, and the forms without
    kernels of ours.
    """
    found: dict[int, Choice] = {}
    forms = {"library": case.instead_label, "reference": "plain torch"}
    for place in case.choosable:
        names = case.labels(place)
        mine = [
            replace(option, label=label)
            for option in options
            for label in option.label.split(JOINED)
            if label in (*names, *forms.values())
        ]
        if settled.form == "kernels":
            symbols = [n.kernel.symbol for n in case.options(place)]
            chosen = names[symbols.index(settled.kernels[place].binary.symbol)]
        else:
            chosen = forms[settled.form]
        found[place] = Choice(case.sizes, chosen, by, tuple(mine))
    return found


def _note(settled: Settled, words: str) -> None:
    settled.choices = {p: replace(c, note=words) for p, c in settled.choices.items()}


__all__ = ["Chooser", "Chosen"]
