"""How long the parts of a generation took."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Timing:
    """Seconds: of the prefill, and of each decode step."""

    prefill: float = 0.0
    steps: list[float] = field(default_factory=list[float])

    @property
    def tokens_per_second(self) -> float | None:
        """The rate of decoding; None where there was no step."""
        return len(self.steps) / sum(self.steps) if self.steps else None
