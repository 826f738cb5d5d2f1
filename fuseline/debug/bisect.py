"""Finds what breaks a compilation: one rewrite, one pass over the whole func, or one kernel.

Rewrites have running numbers, and a compilation can stop applying them after any number; the
smallest at which a check fails is found by binary search. Then it is tried with those alone that
made what it rewrites, to tell whether it needs another one to do harm, and which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fuseline.debug.search import First, first_bad
from fuseline.debug.trial import Check, Kernel, Trial, Verdict
from fuseline.ir.core import Op, Value
from fuseline.ir.text import print_ops
from fuseline.passes.record import Applied, Run
from fuseline.passes.rewrite import Pass

Show = Callable[[str], None]

MOST_PARTNERS = 8
"""Rewrites that break something only together are looked for up to this many."""


@dataclass
class Counted:
    """A check that counts, and tells of each trial."""

    check: Check
    show: Show
    count: int = 0

    def __call__(self, trial: Trial, what: str) -> Verdict:
        """Check a trial; ``what`` names it."""
        verdict = self.check(trial)
        self.count += 1
        word = "cannot tell" if verdict.bad is None else "bad" if verdict.bad else "good"
        self.show(f"compilation {self.count}: {what}: {word} ({verdict.said})")
        return verdict


@dataclass(frozen=True)
class Partner:
    """A rewrite without which another one does no harm; ``enables``: it is not applied then."""

    applied: Applied
    enables: bool


@dataclass(frozen=True)
class FoundRewrite:
    """The first rewrite with which the check fails.

    Attributes:
        applied: its record, from a compilation that ends with it.
        total: how many rewrites a whole compilation applies.
        first: what the search found.
        said: what the check says with it.
        needs: the rewrites that made what it replaces.
        partners: those that it needs besides to do harm.
        alone: whether it does harm with ``needs`` alone; None where that cannot be told.
        later: a pass over the whole func that does the harm to what the rewrite left.
        searched: compilations until it was found.
        compilations: all of them.
    """

    applied: Applied
    total: int
    first: First
    said: str
    needs: tuple[Applied, ...]
    partners: tuple[Partner, ...]
    alone: bool | None
    later: str
    searched: int
    compilations: int

    @property
    def bound(self) -> float:
        """The most compilations that the search takes, if the check can always tell."""
        return 2 + math.log2(max(self.total, 1))

    @property
    def lines(self) -> tuple[list[str], list[str]]:
        """The ops that it removes, and those that it adds."""
        before = {new: old for old, new in self.applied.values.items()}
        ops = _in_order(self.applied.removed, before)
        removed, added = print_ops(ops, self.applied.ops, same=before)
        return removed, added


@dataclass(frozen=True)
class FoundPass:
    """The first pass with which the check fails though no rewrite is applied; 0: before them.

    ``raises``: it is a pass of rewrites that raises, whatever was applied before.
    """

    number: int
    name: str
    said: str
    compilations: int
    raises: bool = False


@dataclass(frozen=True)
class FoundKernel:
    """The first generated kernel with which the check fails; None: it fails without any."""

    kernel: Kernel | None
    total: int
    said: str
    alone: bool | None
    compilations: int


@dataclass(frozen=True)
class FoundNothing:
    """A whole compilation does not fail, or the check cannot tell."""

    said: str
    unclear: bool
    compilations: int


Found = FoundRewrite | FoundPass | FoundKernel | FoundNothing


@dataclass
class Bisection:
    """One search.

    Attributes:
        check: of the passes, or of all.
        record: the record of the passes in a trial, also where one of them raises.
        passes: the pipeline.
        show: told of every compilation.
        kernels: the check of the kernels; None where the one check sees all.
        built: the kernels that there are, where `check` sees all.
    """

    check: Check
    record: Callable[[Trial], Run]
    passes: Sequence[Pass]
    show: Show
    kernels: Check | None = None
    built: Callable[[], Sequence[Kernel]] = tuple
    _count: Counted = field(init=False)

    def __post_init__(self) -> None:
        self._count = Counted(self.check, self.show)

    def run(self) -> Found:
        """Find what breaks."""
        whole = self._count(Trial(), "everything")
        if whole.bad:
            return self._among_rewrites(whole)
        if self.kernels is None or whole.bad is None:
            return FoundNothing(whole.said, whole.bad is None, self._count.count)
        self._count = Counted(self.kernels, self.show, self._count.count)
        built = self._count(Trial(), "everything, with kernels")
        if not built.bad:
            return FoundNothing(built.said, built.bad is None, self._count.count)
        return self._among_kernels(built.said, list(built.kernels.values()))

    # -- rewrites

    def _among_rewrites(self, whole: Verdict) -> Found:
        record = whole.run or self.record(Trial())
        total = len(record.applied) + bool(whole.failed)  # the one that raises has no number yet
        seen: dict[int, Verdict] = {total: whole}

        def fails(limit: int) -> bool | None:
            seen[limit] = self._count(Trial(limit=limit), f"{limit} of {total} rewrites")
            return seen[limit].bad

        first = first_bad(-1, total, fails)
        searched, said = self._count.count, seen[first.bad].said
        if first.bad == 0:
            return self._without_rewrites(said)
        if first.bad > len(record.applied):
            number = next(i for i, p in enumerate(self.passes, 1) if p.name == whole.failed)
            return FoundPass(number, whole.failed, said, self._count.count, raises=True)
        place, run = self._ending_with(first.bad)
        applied = run.applied[first.bad - 1]
        later = self._later(first.bad, place)
        partners, alone = ((), True) if later else self._partners(run, first.bad)
        return FoundRewrite(
            applied,
            total,
            first,
            said,
            tuple(a for a in _closure(run.applied, [applied]) if a is not applied),
            partners,
            alone,
            later,
            searched,
            self._count.count,
        )

    def _ending_with(self, number: int) -> tuple[int, Run]:
        """The number of the pass that applies a rewrite, and the record of what ends with it."""
        for count in range(1, len(self.passes) + 1):
            run = self.record(Trial(limit=number, passes=count))
            if len(run.applied) >= number:
                return count, run
        raise AssertionError(f"no pass applies rewrite {number} any more")

    def _later(self, limit: int, place: int) -> str:
        """The pass behind the one at `place` that does the harm; empty where that one does it."""
        if place == len(self.passes):
            return ""
        here = self._count(Trial(limit=limit, passes=place), f"no pass behind number {place}")
        if here.bad is not False:
            return ""
        found = first_bad(place, len(self.passes), self._prefix(limit))
        return self.passes[found.bad - 1].name

    def _prefix(self, limit: int) -> Callable[[int], bool | None]:
        """Whether the check fails with so many passes."""
        total = len(self.passes)

        def fails(count: int) -> bool | None:
            what = f"{count} of {total} passes, {limit} rewrites"
            return self._count(Trial(limit=limit, passes=count), what).bad

        return fails

    def _partners(self, run: Run, number: int) -> tuple[tuple[Partner, ...], bool | None]:
        """The rewrites that one needs to do harm, and whether it does any without them."""
        applied = run.applied
        found = [applied[number - 1]]
        partners: list[Partner] = []
        verdict = self._with_only(applied, found, 0)
        alone = verdict.bad
        while verdict.bad is False and len(partners) < MOST_PARTNERS:
            enabled = verdict

            def fails(count: int) -> bool | None:
                nonlocal enabled
                verdict = self._with_only(applied, found, count)
                enabled = enabled if verdict.bad else verdict
                return verdict.bad

            first = first_bad(0, number - 1, fails)
            partner = applied[first.bad - 1]
            name = found[0].name
            there = enabled.run is not None and any(a.name == name for a in enabled.run.applied)
            partners.append(Partner(partner, enables=not there))
            if partner in found:
                break
            found.append(partner)
            verdict = self._with_only(applied, found, 0)
        return tuple(partners), alone

    def _with_only(
        self, applied: Sequence[Applied], found: Sequence[Applied], more: int
    ) -> Verdict:
        """Check some rewrites with those that made what they replace, and the first so many."""
        kept = {a.number: a for a in (*_closure(applied, found), *applied[:more])}
        only = tuple(a.name for _, a in sorted(kept.items()))
        numbers = ", ".join(f"#{a.number}" for a in found)
        needed = len(only) - len(found)
        what = f"{numbers} with the {needed} that it needs" if needed else f"only {numbers}"
        what = f"{numbers} and the first {more}" if more else what
        return self._count(Trial(only=only), what)

    # -- what is no rewrite

    def _without_rewrites(self, said: str) -> Found:
        """It fails without any rewrite: a pass over the whole func, a kernel, or none of these."""
        kernels = list(self.built())
        if kernels:
            plain = self._count(Trial(limit=0, plain=("all",)), "no rewrite, no kernel")
            if plain.bad is False:
                return self._among_kernels(said, kernels)
        first = first_bad(-1, len(self.passes), self._prefix(0))
        name = self.passes[first.bad - 1].name if first.bad else ""
        return FoundPass(first.bad, name, said, self._count.count)

    def _among_kernels(self, said: str, kernels: Sequence[Kernel]) -> Found:
        """The rewrites are right, or there are none: one kernel after the other is generated."""
        total = len(kernels)
        symbols = [kernel.symbol for kernel in kernels]

        def fails(count: int) -> bool | None:
            plain = tuple(symbols[count:])
            return self._count(Trial(plain=plain), f"{count} of {total} kernels").bad

        first = first_bad(-1, total, fails)
        if first.bad == 0:
            return FoundKernel(None, total, said, None, self._count.count)
        kernel = kernels[first.bad - 1]
        others = tuple(s for s in symbols if s != kernel.symbol)
        alone = self._count(Trial(plain=others), f"{kernel.symbol} alone").bad
        return FoundKernel(kernel, total, said, alone, self._count.count)


def _closure(applied: Sequence[Applied], wanted: Iterable[Applied]) -> list[Applied]:
    """Rewrites, and all that made what they replace, in order."""
    stack, kept = list(wanted), dict[int, Applied]()
    while stack:
        one = stack.pop()
        if one.number not in kept:
            kept[one.number] = one
            stack += [applied[number - 1] for number in one.needs]
    return [kept[number] for number in sorted(kept)]


def _in_order(ops: Sequence[Op], before: Mapping[Value, Value]) -> list[Op]:
    """Ops that were removed, operands first: those that they had before. A wrong rewrite may have
    put what reads a value in its place.
    """
    inside, seen, order = set(ops), set[Op](), dict[Op, None]()

    def visit(op: Op) -> None:
        if op in inside and op not in seen:
            seen.add(op)
            for value in op.operands:
                owner = before.get(value, value).owner
                if owner is not None:
                    visit(owner)
            order[op] = None

    for op in reversed(ops):  # they were erased from the last one on
        visit(op)
    return list(order)


__all__ = [
    "Bisection",
    "Found",
    "FoundKernel",
    "FoundNothing",
    "FoundPass",
    "FoundRewrite",
    "Partner",
]
