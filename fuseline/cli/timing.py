"""How long the parts of a generation took, and calls of models."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuseline.cli.models import LoadedModel


@dataclass
class Timing:
    """Seconds: of the prefill, and of each decode step."""

    prefill: float = 0.0
    steps: list[float] = field(default_factory=list[float])

    @property
    def tokens_per_second(self) -> float | None:
        """The rate of decoding; None where there was no step."""
        return len(self.steps) / sum(self.steps) if self.steps else None


def process_age() -> float | None:
    """Seconds since this process began, to a hundredth: the start of Python and all imports are in
    it. None where the system does not say.
    """
    try:
        # Field 22 of all; the name, in parentheses, may have blanks.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def timed(program: Callable[..., Any], loaded: LoadedModel) -> tuple[Any, float]:
    """What a program gives for a model's inputs, and the seconds that it took."""
    started = time.perf_counter()
    result = program(*loaded.args, **loaded.kwargs)
    return result, time.perf_counter() - started


def in_turns(
    one: Callable[..., Any], other: Callable[..., Any], loaded: LoadedModel, runs: int
) -> tuple[float, float]:
    """Median seconds of both, called in turns so that a busy machine is as unkind to each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for program, seconds in zip((one, other), times, strict=True):
            seconds.append(timed(program, loaded)[1])
    return statistics.median(times[0]), statistics.median(times[1])
