"""How fast a machine is: what floors of time are made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fuseline.report import CostRecord
from fuseline.report_tables import digits

_HALF = ("bf16", "f16")
_READ = 1 << 28
"""Bytes that are read to see how fast that goes: more than caches hold."""
_WIDTH = 1024
"""Rows and columns of the products that are timed."""
_RUNS = 10
"""Calls that are timed."""


@dataclass(frozen=True)
class Machine:
    """How fast a machine is.

    Attributes:
        bandwidth: bytes a second of its memory.
        single: floating-point operations a second of products in float32.
        half: the same in float16 and bfloat16.
        name: what these are the figures of.
    """

    bandwidth: float
    single: float
    half: float
    name: str

    def seconds(self, record: CostRecord) -> float:
        """The least that an op takes: its bytes and its operations overlap."""
        rate = self.half if record.dtype in _HALF else self.single
        return max(record.bytes / self.bandwidth, record.flops / rate)

    def __str__(self) -> str:
        single, half = (digits(rate / 1e12) for rate in (self.single, self.half))
        bandwidth = f"{digits(self.bandwidth / 1e9, 4)} GB/s"
        rates = f"{single} TFlop/s in float32, {half} in float16 and bfloat16"
        return f"{self.name}: {bandwidth}, {rates}"


def machine_of(target: str, bandwidth: float | None = None, rate: float | None = None) -> Machine:
    """The machine that a target stands for: this one, measured, or a card by its data sheet.

    Args:
        target: by name; ``cpu`` is this machine.
        bandwidth: bytes a second, in the place of what is known.
        rate: floating-point operations a second, in the place of both.

    """
    from fuseline.codegen.targets import TARGETS

    if target == "cpu":
        known = Machine(
            bandwidth or _bandwidth(),
            rate or _rate("float32"),
            rate or _rate("bfloat16"),
            "this machine, as measured",
        )
    else:
        card = TARGETS[target].rates
        known = Machine(card.bandwidth, card.single, card.half, f"{card.card}, by its data sheet")
    if bandwidth is None and rate is None:
        return known
    return Machine(
        *(bandwidth or known.bandwidth, rate or known.single, rate or known.half),
        name="as given" if bandwidth and rate else f"as given, and {known.name}",
    )


def _bandwidth() -> float:
    import torch

    memory = torch.ones(_READ // 4)
    return _READ / _best(memory.sum)


def _rate(dtype: str) -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_WIDTH, _WIDTH, generator=generator).to(getattr(torch, dtype))
    return 2 * _WIDTH**3 / _best(lambda: x @ x)


def _best(run: Callable[[], object]) -> float:
    """The shortest of several runs, after one that warms up."""
    run()
    found: list[float] = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


__all__ = ["Machine", "machine_of"]
