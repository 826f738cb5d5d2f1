"""Rounds, medians, noise and budgets: on a clock that only the work moves, and on real work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from fuseline.choose.timing import (
    HOPELESS,
    LEAST_ROUNDS,
    MOST_ROUNDS,
    Budget,
    Run,
    Sampler,
    Samples,
    fastest,
    measure,
)


@dataclass
class FakeDevice:
    """A device whose clock is moved by what runs on it, and by nothing else."""

    clock: float = 0.0
    log: list[str] = field(default_factory=list[str])

    def prepare(self, run: Run) -> Sampler:
        run()

        def sample() -> float:
            before = self.clock
            run()
            return self.clock - before

        return sample

    def now(self) -> float:
        return self.clock

    def work(self, name: str, seconds: Callable[[], float]) -> Run:
        def run() -> None:
            self.log.append(name)
            self.clock += seconds()

        return run


def steady(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def noisy(seconds: float, share: float, seed: int) -> Callable[[], float]:
    numbers = random.Random(seed)
    return lambda: seconds * (1 + share * numbers.random())


def timed(
    device: FakeDevice, budget: float | None = None, **ways: Callable[[], float]
) -> dict[str, Samples] | None:
    runs = {name: device.work(name, seconds) for name, seconds in ways.items()}
    return measure(device, runs, Budget(budget))


def test_the_fastest_wins() -> None:
    found = timed(FakeDevice(), a=steady(3e-6), b=steady(2e-6), c=steady(4e-6))
    assert found is not None
    assert fastest(found) == "b"
    assert found["b"].median == pytest.approx(2e-6)


def test_rounds_are_interleaved_and_their_order_varies() -> None:
    device = FakeDevice()
    timed(device, a=steady(1.0), b=steady(1.1), c=steady(1.2))
    rounds = [tuple(device.log[i : i + 3]) for i in range(3, len(device.log), 3)]
    assert len(rounds) >= LEAST_ROUNDS
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1


def test_a_tie_keeps_the_first() -> None:
    found = timed(FakeDevice(), a=steady(1.01), b=steady(1.0))
    assert found is not None
    assert fastest(found) == "a"


def test_a_difference_within_the_noise_keeps_the_first() -> None:
    found = {
        "a": Samples([1.3, 1.0, 1.6, 1.1, 1.5]),
        "b": Samples([1.2, 0.9, 1.5, 1.0, 1.4]),
    }
    assert fastest(found) == "a"
    found["b"] = Samples([0.70, 0.71, 0.72, 0.70, 0.71])
    assert fastest(found) == "b"


def test_outliers_do_not_count() -> None:
    """A hiccup of the machine in one round of six."""
    hiccups = iter([1.0] * 3 + [50.0] + [1.0] * 100)
    found = timed(FakeDevice(), a=lambda: next(hiccups), b=steady(1.2))
    assert found is not None
    assert fastest(found) == "a"


def test_noise_is_met_by_more_rounds() -> None:
    quiet = timed(FakeDevice(), a=steady(1.0), b=steady(1.5))
    loud = timed(FakeDevice(), a=noisy(1.0, 0.5, 1), b=noisy(1.0, 0.5, 2))
    assert quiet is not None
    assert loud is not None
    assert len(quiet["a"].seconds) == LEAST_ROUNDS
    assert LEAST_ROUNDS < len(loud["a"].seconds) <= MOST_ROUNDS


def test_what_drifts_meets_all_alike() -> None:
    """Clocks that sink: times one after the other would put the later ones behind."""
    device = FakeDevice()

    def slower(base: float) -> Callable[[], float]:
        return lambda: base * (1 + 0.02 * len(device.log))

    found = timed(device, a=slower(1.2), b=slower(1.0))
    assert found is not None
    assert fastest(found) == "b"


def test_the_hopeless_are_timed_twice() -> None:
    found = timed(FakeDevice(), a=steady(1.0), b=steady(1.1 * HOPELESS))
    assert found is not None
    assert (len(found["a"].seconds), len(found["b"].seconds)) == (LEAST_ROUNDS, 2)
    assert fastest(found) == "a"


@pytest.mark.parametrize("kind", [RuntimeError, IndexError, TypeError, ValueError])
def test_what_fails_is_left_out_with_its_reason(kind: type[Exception]) -> None:
    def fail() -> float:
        raise kind("out of resources\nand more")

    found = timed(FakeDevice(), a=fail, b=steady(1.0))
    assert found is not None
    assert found["a"].failed == "out of resources"
    assert fastest(found) == "b"


def test_what_fails_in_a_later_round_is_left_out_too() -> None:
    left = iter([1.0] * 3)

    def fail() -> float:
        try:
            return next(left)
        except StopIteration:
            raise RuntimeError("out of memory") from None

    found = timed(FakeDevice(), a=fail, b=steady(2.0))
    assert found is not None
    assert found["a"].failed == "out of memory"
    assert fastest(found) == "b"


def test_without_time_nothing_is_decided() -> None:
    device = FakeDevice()
    budget = Budget(8.0)
    runs = {name: device.work(name, steady(1.0)) for name in "abc"}
    assert measure(device, runs, budget) is None
    assert device.clock <= 9.0
    assert budget.left <= 0
    assert measure(device, runs, budget) is None
    assert device.clock <= 9.0, "and nothing is begun any more"


def test_rounds_beyond_the_least_are_given_up_for_the_budget() -> None:
    device = FakeDevice()
    found = timed(device, 20.0, a=noisy(1.0, 0.5, 3), b=noisy(1.0, 0.5, 4))
    assert found is not None
    assert LEAST_ROUNDS <= len(found["a"].seconds) < MOST_ROUNDS
    assert device.clock < 23.0


def test_a_budget_is_spent_by_all_together() -> None:
    device, budget = FakeDevice(), Budget(100.0)
    for _ in range(3):
        measure(device, {"a": device.work("a", steady(1.0))}, budget)
    assert budget.spent == pytest.approx(device.clock)


class HostTimer:
    """The host's own clock."""

    def prepare(self, run: Run) -> Sampler:
        run()

        def sample() -> float:
            before = time.thread_time()
            run()
            return time.thread_time() - before

        return sample

    def now(self) -> float:
        return time.perf_counter()


def test_real_work() -> None:
    def work(count: int) -> Iterator[int]:
        return iter([sum(i * i for i in range(count))])

    ways = {"more": lambda: work(60_000), "less": lambda: work(20_000)}
    found = measure(HostTimer(), ways, Budget(60.0))
    assert found is not None
    assert fastest(found) == "less"
