"""Shrinks a func that shows what is wrong, while it still shows it.

Passes, results and ops are left out by delta debugging (ddmin): halves first, then smaller parts.
What an op that is left out made becomes an argument. Then sizes shrink, and attributes take their
defaults. Every step is checked; one that makes the failure another one is not taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fuseline.debug.case import Case
from fuseline.debug.search import first_bad
from fuseline.debug.trial import Verdict
from fuseline.debug.twins import Change, attributes_to_default, fresh_names, sizes_of, twin
from fuseline.ir.core import Func, IRError
from fuseline.ir.text import print_func
from fuseline.ir.verify import verify
from fuseline.passes.rewrite import Pass

T = TypeVar("T")

_FEW = 32
"""So many ops are each tried."""

_TINY = (1, 2, 3, 4, 8)
"""Sizes that are tried in the place of larger ones."""


class OutOfTime(Exception):
    """The time that was given is over."""


@dataclass
class Reduction:
    """One reduction.

    Attributes:
        case: the smallest so far.
        passes: its pipeline.
        check: what a candidate does.
        better: called with each smaller case that still fails.
        seconds: time that it may take; None: as much as it needs.
        tried: how many candidates were checked.
    """

    case: Case
    passes: Sequence[Pass]
    check: Callable[[Case], Verdict]
    better: Callable[[Case], None]
    seconds: float | None = None
    tried: int = 0
    _first: Verdict | None = None
    _known: dict[str, bool] = field(default_factory=dict[str, bool])
    _started: float = field(default_factory=time.monotonic)

    def run(self) -> bool:
        """Shrink until nothing more can be left out, or time is over; whether the case fails."""
        self._first = self.check(self.case)
        self.tried += 1
        if not self._first.bad:
            return False
        self.better(self.case)
        before = ""
        try:
            while before != (before := self.case.to_text()):
                self._drop_passes()
                self._drop_returns()
                self._end_early()
                self._drop_ops()
                self._pass_ops()
                self._shrink()
                self._simplify()
        except OutOfTime:
            pass
        return True

    @property
    def first(self) -> Verdict:
        """What the case did before anything was left out."""
        assert self._first is not None, "asked for after the run"
        return self._first

    # -- steps

    def _drop_passes(self) -> None:
        def attempt(kept: Sequence[Pass]) -> bool:
            text = ",".join(map(str, kept))
            return bool(kept) and self._take(replace(self.case, pipeline=text))

        self.passes = ddmin(list(self.passes), attempt)

    def _drop_returns(self) -> None:
        base = self.case.func

        def attempt(kept: Sequence[int]) -> bool:
            return bool(kept) and self._take_func(base, Change(returns=tuple(kept)))

        ddmin(list(range(len(base.returns))), attempt)

    def _end_early(self) -> None:
        """Return what an op in the middle makes: the search takes the first that will do, as if
        all behind it did, and of few ops each is tried.
        """
        base = self.case.func
        first_bad(-1, len(base.ops), lambda i: self._take_func(base, Change(last=i)))
        few = self.case.func
        if len(few.ops) <= _FEW:
            any(self._take_func(few, Change(last=i)) for i in range(len(few.ops)))

    def _drop_ops(self) -> None:
        """Results of ops that are left out become arguments; ops that nobody reads just go."""
        self._take_func(self.case.func, Change())  # without arguments that nobody reads
        base = self.case.func
        numbers = range(len(base.ops))

        def attempt(kept: Sequence[int]) -> bool:
            cut = frozenset(numbers).difference(kept)
            return self._take_func(base, Change(cut=cut))

        ddmin(list(numbers), attempt)

    def _pass_ops(self) -> None:
        """What an op reads stands in its place; where it is returned, that is returned."""
        number = len(self.case.func.ops)
        while number := min(number, len(self.case.func.ops)):
            number -= 1
            for change in (Change(opened=number), Change(passed=number)):
                if self._take_func(self.case.func, change):
                    break

    def _shrink(self) -> None:
        """Each size that occurs becomes the smallest that will do, everywhere at once."""
        for size in sizes_of(self.case.func):
            for smaller in (n for n in _TINY if isinstance(size, str) or n < size):
                exact = Change(sizes={size: smaller})
                changes = [exact, replace(exact, multiples=True), replace(exact, numbers=True)]
                if any(self._take_func(self.case.func, change) for change in changes):
                    break

    def _simplify(self) -> None:
        """Attributes, what arguments are, and names."""
        number = 0
        while number < len(self.case.func.ops):
            for attributes in attributes_to_default(self.case.func.ops[number]):
                self._take_func(self.case.func, Change(attributes={number: attributes}))
            number += 1
        for number in range(len(self.case.func.args)):
            self._take_func(self.case.func, Change(plain=frozenset({number})))
        self._take_func(self.case.func, Change(places=False))
        self._take(replace(self.case, func=fresh_names(self.case.func)), same_size=True)
        self._take(replace(self.case, sizes={}, strides={}), same_size=True)

    # -- candidates

    def _take_func(self, base: Func, change: Change) -> bool:
        func = twin(base, change)
        if func is None:
            return False
        names = {arg.hint for arg in func.args}
        strides = {n: s for n, s in self.case.strides.items() if n in names and not change.sizes}
        sizes = {n: s for n, s in self.case.sizes.items() if n in func.symbols}
        return self._take(replace(self.case, func=func, strides=strides, sizes=sizes))

    def _take(self, candidate: Case, *, same_size: bool = False) -> bool:
        """Make a candidate the smallest case if it still fails as the first one did."""
        text = candidate.to_text()
        if text in self._known:
            return self._known[text]
        if self.seconds is not None and time.monotonic() - self._started > self.seconds:
            raise OutOfTime
        larger = len(text) > len(self.case.to_text()) and not same_size
        fails = not larger and _is_valid(candidate.func) and self._same(self.check(candidate))
        self._known[text] = fails
        if fails:
            self.case = candidate
            self.better(candidate)
        return fails

    def _same(self, verdict: Verdict) -> bool:
        """Whether a candidate fails in the same way, and numbers by far if they did at first."""
        self.tried += 1
        first = self.first
        if not verdict.bad or (verdict.failed, verdict.raised) != (first.failed, first.raised):
            return False
        return verdict.excess >= min(first.excess, max(1.0, first.excess) ** 0.5)


def ddmin(items: list[T], attempt: Callable[[Sequence[T]], bool]) -> list[T]:
    """The items that are left when no part of them can be left out any more.

    Args:
        items: all of them, with which an attempt is known to succeed.
        attempt: whether it does with some of them, in order.

    """
    parts = 2
    while items:
        size = max(1, -(-len(items) // parts))
        for kept in _without_parts(items, size):
            if attempt(kept):
                items, parts = kept, max(parts - 1, 2)
                break
        else:
            if size == 1:
                return items
            parts = min(parts * 2, len(items))
    return items


def _without_parts(items: list[T], size: int) -> Iterator[list[T]]:
    """The items without each of the parts of this size; the last parts first."""
    for start in reversed(range(0, len(items), size)):
        yield items[:start] + items[start + size :]


def _is_valid(func: Func) -> bool:
    try:
        verify(func)
    except IRError:
        return False
    return bool(func.returns) and bool(print_func(func))


__all__ = ["Reduction", "ddmin"]
