"""From lowered launches to binaries for a GPU: the best configuration that the target can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.lower import Launch
from fuseline.codegen.targets import Target
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.triton_build import TritonError, TritonSource, build_triton


@dataclass(frozen=True)
class Candidate:
    """A configuration of a launch that the target can run, and how much of it fits at once.

    ``resident`` is the share of a multiprocessor's warps that its blocks may occupy.
    """

    launch: Launch
    binary: Binary
    resident: float


def triton_source(kernel: TritonKernel) -> TritonSource:
    """A kernel as the builder takes it."""
    return TritonSource(
        symbol=kernel.symbol,
        text=kernel.render(),
        signature=kernel.signature,
        hints=dict(kernel.hints),
        warps=kernel.warps,
        stages=kernel.stages,
    )


def candidates(cache: Cache, launch: Launch, target: Target) -> tuple[list[Candidate], list[str]]:
    """The configurations of a launch that do without spills on a target, and why others do not."""
    found: list[Candidate] = []
    refused: list[str] = []
    for each in (launch, *launch.others):
        kernel = each.kernel
        assert isinstance(kernel, TritonKernel), f"{kernel.family} is no kernel for a GPU"
        try:
            entry = build_triton(cache, triton_source(kernel), target.capability)
        except TritonError as error:
            refused.append(str(error.diagnostic))
            continue
        binary = Binary.of(entry)
        if reason := refusal(binary, target):
            refused.append(f"{kernel.symbol}: {reason}")
            continue
        blocks = target.occupancy(binary.warps, binary.resources["registers"], _shared(binary))
        found.append(Candidate(each, binary, blocks * binary.warps / target.warps))
    return found, refused


def refusal(binary: Binary, target: Target) -> str:
    """Why a target should not run a binary; empty where it may."""
    if binary.spills:
        return f"it spills {binary.resources['stack']} bytes of a thread's values on {target.name}"
    if _shared(binary) > target.block_memory:
        have = target.block_memory
        return f"{_shared(binary)} bytes of shared memory; a block of {target.name} has {have}"
    if not target.occupancy(binary.warps, binary.resources["registers"], _shared(binary)):
        return f"{binary.resources['registers']} registers for each of {32 * binary.warps} threads"
    return ""


def _shared(binary: Binary) -> int:
    return binary.shared_memory + binary.resources["static_shared_memory"]


ENOUGH = 0.5
"""The share of resident warps from which on more of them hide no more latency."""


def best(found: Sequence[Candidate]) -> Candidate:
    """The first in the order of the lowering among those with enough warps in flight, else the one
    with most.
    """
    return max(found, key=lambda c: min(c.resident, ENOUGH))


__all__ = ["Candidate", "best", "candidates", "refusal", "triton_source"]
