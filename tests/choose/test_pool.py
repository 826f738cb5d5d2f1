"""Jobs in threads: order, bounds, and what happens when one fails."""

from __future__ import annotations

import threading
import time

import pytest

from fuseline.choose.pool import cores, together


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_the_order_of_jobs(workers: int) -> None:
    def job(number: int) -> int:
        time.sleep(0.002 * (5 - number))
        return number

    told: list[tuple[int, str]] = []
    found = together(
        [lambda n=n: job(n) for n in range(5)],
        workers,
        lambda n: told.append((n, threading.current_thread().name)),
    )
    assert found == list(range(5))
    assert sorted(n for n, _ in told) == list(range(5))
    assert {name for _, name in told} == {threading.current_thread().name}


def test_no_more_run_at_once_than_were_asked() -> None:
    running: list[int] = [0, 0]
    lock = threading.Lock()

    def job() -> None:
        with lock:
            running[0] += 1
            running[1] = max(running)
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    together([job] * 12, 3)
    assert 1 < running[1] <= 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_ends_the_rest(workers: int, error: type[BaseException]) -> None:
    begun: list[int] = []

    def job(number: int) -> None:
        begun.append(number)
        if not number:
            raise error("ended")
        time.sleep(0.01)

    with pytest.raises(error, match="ended"):
        together([lambda n=n: job(n) for n in range(50)], workers)
    assert len(begun) < 50
    assert not [t for t in threading.enumerate() if t.name.startswith("fuseline-build")]


def test_cores_are_bounded() -> None:
    assert cores(1) == 1
    assert cores(10_000) == cores() >= 1
