"""The machines that code can be generated for, and what a kernel may use on each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Backend = Literal["cpu", "cuda"]
"""Which templates and lowerings a target has."""


@dataclass(frozen=True)
class Rates:
    """How fast a GPU of a target is, for the ranking of kernels; 0 for a CPU.

    They are those of the card that a target is bought as most, by its maker's data sheet: A100
    80 GB, H100 SXM, B200, RTX 5090. A smaller card of the same target has fewer multiprocessors and
    less bandwidth, in about the same ratio, which is what the ranking depends on.

    Attributes:
        multiprocessors: on the card.
        bandwidth: bytes a second of its memory.
        half: floating-point operations a second of dense products in float16 and bfloat16.
        single: the same in float32.
        card: what it is called.
        latency: seconds from a load to its data, where memory is busy.
        launch: seconds from one kernel of a CUDA graph to the next.
    """

    multiprocessors: int = 0
    bandwidth: float = 0.0
    half: float = 0.0
    single: float = 0.0
    card: str = ""
    latency: float = 0.8e-6
    launch: float = 1.5e-6


@dataclass(frozen=True)
class Target:
    """A target by name; the numbers are those of an NVIDIA GPU, 0 for a CPU.

    They follow the table of technical specifications by compute capability in the CUDA C++
    programming guide.

    Attributes:
        name: as in ``Config(target=...)``.
        backend: which templates and lowerings it has.
        capability: major times ten plus minor.
        block_memory: bytes of shared memory that one block may ask for.
        shared_memory: bytes of it that a multiprocessor has for all its blocks.
        registers: 32-bit registers of a multiprocessor.
        warps: most resident warps of a multiprocessor.
        blocks: most resident blocks of a multiprocessor.
        rates: how fast the usual card is.
    """

    name: str
    backend: Backend
    capability: int = 0
    block_memory: int = 0
    shared_memory: int = 0
    registers: int = 0
    warps: int = 0
    blocks: int = 0
    rates: Rates = Rates()

    def occupancy(self, warps: int, registers: int, shared_memory: int) -> int:
        """Blocks of a kernel that a multiprocessor holds at once; 0 where not even one fits.

        ``warps`` are those of a block, ``registers`` those of a thread, ``shared_memory`` the
        block's bytes. Registers are given out to warps in lots of 256, shared memory in lots of
        128 bytes behind the 1024 that the system takes of every block.
        """
        if shared_memory > self.block_memory or registers > 255:
            return 0
        of_warp = -(-registers * 32 // 256) * 256
        of_block = -(-shared_memory // 128) * 128 + 1024
        by_registers = self.registers // (of_warp * warps) if registers else self.blocks
        return min(self.blocks, self.warps // warps, by_registers, self.shared_memory // of_block)


_K = 1024
_A100 = Rates(108, 2.04e12, 312e12, 19.5e12, "A100 80 GB")
_H100 = Rates(132, 3.35e12, 989e12, 67e12, "H100 SXM")
_B200 = Rates(148, 8.0e12, 2250e12, 75e12, "B200")
_RTX_5090 = Rates(170, 1.79e12, 209.5e12, 104.8e12, "RTX 5090")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cpu", "cpu"),
        Target("sm_80", "cuda", 80, 163 * _K, 164 * _K, 65536, 64, 32, _A100),
        Target("sm_90", "cuda", 90, 227 * _K, 228 * _K, 65536, 64, 32, _H100),
        Target("sm_100", "cuda", 100, 227 * _K, 228 * _K, 65536, 64, 32, _B200),
        Target("sm_120", "cuda", 120, 99 * _K, 100 * _K, 65536, 48, 24, _RTX_5090),
    )
}
"""Every target by name."""

SMALLER_AMPERE = dataclasses.replace(
    TARGETS["sm_80"], block_memory=99 * _K, shared_memory=100 * _K, warps=48, blocks=16
)
"""Capabilities 8.6 and 8.9: they run the code of sm_80, and have less room."""

GPU_TARGETS = tuple(target for target in TARGETS.values() if target.backend == "cuda")

__all__ = ["GPU_TARGETS", "SMALLER_AMPERE", "TARGETS", "Backend", "Rates", "Target"]
