"""Compares ways of doing the same by their times, within a budget.

What is timed are callables; a `Timer` says how long one of them takes once, with cold caches. The
rounds are interleaved: each round times every way once, in an order of its own, so that what comes
and goes on the machine (clocks, other programs) meets all of them alike. Medians are compared, and
a difference counts only beyond what the samples scatter.
"""

from __future__ import annotations

import logging
import random
import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fuseline import errors
from fuseline.runtime.graphs.recorder import first_line

log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[], object]
Sampler: TypeAlias = Callable[[], float]

LEAST_ROUNDS = 5
MOST_ROUNDS = 30
HOPELESS = 2.5
"""What takes so many times as long as the best, in its best sample of two, is timed no more."""

TIE = 0.02
"""A difference below this share of the time is none, however little the samples scatter."""


FAILURES = (RuntimeError, LookupError, TypeError, ValueError, errors.FuselineError)
"""What work that is timed may raise: torch says by many classes what it does not do."""


class Timer(Protocol):
    """Times work on one device."""

    def prepare(self, run: Run) -> Sampler:
        """A function that does the work once, with cold caches, and gives the seconds it took.

        The work is done here, too, so that nothing is done for the first time when it is timed.

        Raises:
            FAILURES: the work fails, or is none that programs are made of: on a
                GPU, what no CUDA graph can hold.

        """
        ...

    def now(self) -> float:
        """Seconds on the clock that budgets are held to."""
        ...


@dataclass
class Budget:
    """Seconds that timing may take in all; no limit where that is None."""

    seconds: float | None = None
    spent: float = 0.0

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.seconds is None else self.seconds - self.spent

    @contextmanager
    def clocked(self, timer: Timer) -> Generator[None]:
        """What is done within takes of it."""
        started = timer.now()
        try:
            yield
        finally:
            self.spent += timer.now() - started


@dataclass
class Samples:
    """The times of one way, in seconds; or what it failed with."""

    seconds: list[float] = field(default_factory=list[float])
    failed: str = ""

    @property
    def median(self) -> float:
        """The time in the middle."""
        return statistics.median(self.seconds)

    @property
    def scatter(self) -> float:
        """How far the median is to be trusted: the median distance from it, over the root of the
        number of samples.
        """
        middle = self.median
        away = statistics.median(abs(s - middle) for s in self.seconds)
        return away / len(self.seconds) ** 0.5


def measure(
    timer: Timer, ways: Mapping[str, Run], budget: Budget, *, seed: int = 0
) -> dict[str, Samples] | None:
    """Times of each way by name; None where the budget ends before they can be compared.

    What fails is left out of the comparison, with the reason; what is hopelessly slow is timed
    twice and no more.
    """
    limit = timer.now() + budget.left
    with budget.clocked(timer):
        return _measured(timer, ways, limit, random.Random(seed))


def _measured(
    timer: Timer, ways: Mapping[str, Run], limit: float, order: random.Random
) -> dict[str, Samples] | None:
    found = {name: Samples() for name in ways}
    samplers: dict[str, Sampler] = {}
    for name, run in ways.items():
        if timer.now() >= limit:
            return None
        try:
            samplers[name] = timer.prepare(run)
        except FAILURES as error:
            found[name].failed = first_line(error)
            log.debug("%s cannot be timed: %s", name, found[name].failed)
    for number in range(MOST_ROUNDS):
        names = list(samplers)
        order.shuffle(names)
        for name in names:
            if timer.now() >= limit:
                return found if number >= LEAST_ROUNDS else None
            try:
                found[name].seconds.append(samplers[name]())
            except FAILURES as error:
                found[name].failed = first_line(error)
                del samplers[name]
        if number:
            _drop_hopeless(samplers, found)
        if number + 1 >= LEAST_ROUNDS and _is_settled([found[name] for name in samplers]):
            break
    return found


def _drop_hopeless(samplers: dict[str, Sampler], found: Mapping[str, Samples]) -> None:
    best = min((min(found[name].seconds) for name in samplers), default=0.0)
    for name in [*samplers]:
        if min(found[name].seconds) > HOPELESS * best:
            del samplers[name]


def _is_settled(rest: Sequence[Samples]) -> bool:
    """Whether the best is known: each of the others is worse beyond doubt, or as good."""
    if len(rest) < 2:
        return True
    best = min(rest, key=lambda s: s.median)
    return all(
        other is best
        or _is_slower(other, best)
        or abs(other.median - best.median) + _doubt(other, best) < TIE * best.median
        for other in rest
    )


def fastest(found: Mapping[str, Samples]) -> str:
    """The first name, in their order, that none of the others beats beyond doubt.

    Raises:
        ValueError: all have failed.

    """
    timed = {name: s for name, s in found.items() if s.seconds and not s.failed}
    best = min(timed.values(), key=lambda s: s.median)
    return next(name for name, s in timed.items() if s is best or not _is_slower(s, best))


def _is_slower(one: Samples, best: Samples) -> bool:
    return one.median - best.median > max(TIE * best.median, _doubt(one, best))


def _doubt(one: Samples, other: Samples) -> float:
    """The least difference of two medians that is more than noise."""
    return 2.0 * (one.scatter + other.scatter)


__all__ = ["Budget", "Samples", "Timer", "fastest", "measure"]
