"""Several jobs at once, in a bounded number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")


def together(
    jobs: Sequence[Callable[[], T]], workers: int, done: Callable[[int], None] | None = None
) -> list[T]:
    """The results of all jobs, in order.

    A job that fails ends the rest: those that have not begun are not begun, and its error is raised
    when those that have are over.

    Args:
        jobs: what to do.
        workers: how many at once.
        done: told the number of each job when it is over, by this thread, in the order of ending.

    """
    if workers < 2 or len(jobs) < 2:
        results: list[T] = []
        for number, job in enumerate(jobs):
            results.append(job())
            if done is not None:
                done(number)
        return results
    pool = ThreadPoolExecutor(min(workers, len(jobs)), "fuseline-build")
    try:
        tasks = {pool.submit(job): number for number, job in enumerate(jobs)}
        for task in as_completed(tasks):
            task.result()
            if done is not None:
                done(tasks[task])
        return [task.result() for task in tasks]
    finally:
        pool.shutdown(cancel_futures=True)


def cores(most: int | None = None) -> int:
    """Threads for compiling: the cores that this process may use, and no more than were asked."""
    here = len(os.sched_getaffinity(0))
    return here if most is None else max(1, min(here, most))


__all__ = ["cores", "together"]
