"""How long the parts of a generation took."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path


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
