"""How long a kernel takes, by counting: what configurations of one kernel are ranked by.

A kernel is taken to be bound by memory. It moves its op's bytes; its blocks come in waves, as many
blocks at a time as the multiprocessors hold; and a wave is as fast as its loads in flight allow:

* A multiprocessor moves what it has in flight once in the latency of a load (Little's law). A
  block has four loads of 16 bytes a thread in flight, but no more than all that it moves; one that
  is pipelined through shared memory has all stages in flight but the one that it computes with.
* It moves no more than twice its part of the bandwidth, however few others are at work, and all
  together no more than the bandwidth. So too few blocks leave bandwidth unused, and a last wave of
  few blocks takes nearly as long as a full one.
* To that come one latency for the first load, and the launch.

The figures are good for comparing one kernel's configurations with each other, not for more: the
bytes are those of the whole op, for each of its launches. They say nothing of a difference below
`MARGIN`; then the order of the lowering stands, which knows reasons that are not counted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.targets import Target

MARGIN = 0.1
"""The share of its time by which a configuration must be better than one that is listed first."""

THREAD_BYTES = 64
"""Bytes that a thread asks for at once: four loads of 16."""

ALONE = 2.0
"""How much of the bandwidth a multiprocessor can draw, as a multiple of its equal part."""

FEW_REGISTERS = 32
"""Registers of a thread that a kernel is taken to need before it is built: most need more."""


@dataclass(frozen=True)
class Facts:
    """What is known of one configuration at one size.

    Attributes:
        blocks: of the grid.
        warps: of a block.
        stages: of its software pipeline.
        bytes: that the op moves.
        registers: of a thread; None before it is built.
        shared: bytes of a block's shared memory; None before it is built.
    """

    blocks: int
    warps: int
    stages: int
    bytes: int
    registers: int | None = None
    shared: int | None = None


def seconds(facts: Facts, target: Target) -> float:
    """The estimate for one configuration; for one that is not built, the best that it may come to.

    A grid without blocks takes no time at all.
    """
    if facts.blocks <= 0:
        return 0.0
    rates = target.rates
    resident = max(1, _resident(facts, target))
    wave = min(facts.blocks, resident * rates.multiprocessors)
    whole, rest = divmod(facts.blocks, wave)
    each = facts.bytes / facts.blocks
    busy = whole * wave * each / _throughput(facts, wave, each, target)
    if rest:
        busy += rest * each / _throughput(facts, rest, each, target) + rates.latency
    return rates.launch + rates.latency + busy


def _resident(facts: Facts, target: Target) -> int:
    """Blocks that a multiprocessor holds."""
    registers = FEW_REGISTERS if facts.registers is None else facts.registers
    return target.occupancy(facts.warps, registers, facts.shared or 0)


def _throughput(facts: Facts, blocks: int, each: float, target: Target) -> float:
    """Bytes a second while so many blocks, which move ``each`` bytes, run at once."""
    rates = target.rates
    beside = -(-blocks // rates.multiprocessors)
    flight = beside * min(max(each, 1.0), _in_flight(facts))
    part = min(flight / rates.latency, ALONE * rates.bandwidth / rates.multiprocessors)
    return min(rates.bandwidth, part * min(blocks, rates.multiprocessors))


def _in_flight(facts: Facts) -> float:
    """Bytes that a block asks for before it needs the first of them."""
    by_threads = 32.0 * facts.warps * THREAD_BYTES
    if facts.stages < 3:
        return by_threads
    if facts.shared is None:  # what is pipelined, and how wide, is known when it is built
        return math.inf
    return max(by_threads, facts.shared * (facts.stages - 1) / facts.stages)


def first_of(times: Sequence[float]) -> int:
    """The place of the first time that none of the others is better than by more than `MARGIN`."""
    limit = min(times) * (1 + MARGIN)
    return next(i for i, each in enumerate(times) if each <= limit)


def mean(times: Sequence[float]) -> float:
    """The geometric mean: sizes count alike, however long each takes."""
    if not all(times):
        return 0.0
    return math.exp(sum(math.log(each) for each in times) / len(times))


__all__ = ["MARGIN", "Facts", "first_of", "mean", "seconds"]
