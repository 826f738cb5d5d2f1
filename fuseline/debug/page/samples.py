"""Samples of a program as it runs: of whole calls, and of each step by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fuseline.debug.machine import Machine
from fuseline.debug.page.page import Page

Call = Callable[[], Any]


def take(
    page: Page, compiled: Call, eager: Call, runs: int, machine: Callable[[str], Machine]
) -> None:
    """Time calls of a compiled program, of its steps, and of eager, and write the page anew.

    Steps are timed in calls of their own, in which a program runs one step after another, on a GPU
    without graphs. Whole calls are timed in turns.

    Args:
        page: that the program is on.
        compiled: calls it; it has been called before.
        eager: calls what it was compiled from.
        runs: how often each is called.
        machine: how fast the machine of a target is, by the target's name.

    """
    with page.samples():
        for _ in range(runs):
            compiled()
    ran = [program for program in page.programs if program.samples]
    if not ran:
        page.note("nothing was timed: no program of this page runs by its kernels here")
    if len(ran) > 1:
        page.note(f"a call runs {len(ran)} programs: the seconds of calls are those of all of them")
    calls: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(runs if ran else 0):
        calls["eager"].append(_timed(eager))
        calls["compiled"].append(_timed(compiled))
    for program in ran:
        program.calls = {name: tuple(seconds) for name, seconds in calls.items()}
        program.machine = machine(program.target)
    page.write()


def _timed(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


__all__ = ["take"]
