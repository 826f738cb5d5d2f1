"""CUDA C++ kernels: what their contexts share, and how threads share rows.

A kernel in CUDA C++ does what one in Triton does, under the same names of buffers and dims, and is
a further configuration of the same launch. It can win where Triton's blocks do not fit: those are
powers of two on every axis, while here a row has exactly the threads that it needs, and a head
stays within its part of a warp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fuseline.codegen.gpu.kernel import GpuKernel
from fuseline.ir.types import DType

CPP_TYPES = {"f32": "float", "bf16": "bf16", "f16": "f16", "i64": "i64", "i32": "int"}
"""Our names of element types and integers, and those of the kernels."""

ACCESS = 16
"""Bytes that a thread reads or writes at once, at most."""

WARP = 32

MOST_THREADS = 1024
"""Of a block."""

NARROW = 128
"""Accesses of a row that is left to one warp, at most: four for each lane."""

PLAIN_LANES = 12
"""Up to so many lanes share a row when their number is no power of two: such sums take as many
steps as there are lanes."""


@dataclass(frozen=True, kw_only=True)
class CudaKernel(GpuKernel):
    """Base of the CUDA C++ contexts."""

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.warps

    @property
    def parameters(self) -> str:
        """The head of the function: all arguments with their types.

        No pointer is said to be the only way to its memory. What is read so could be read at any
        time, and not through the caches that the wait for the kernel ahead makes good.
        """
        results = self.written
        pointers = [
            f"{'' if name in results else 'const '}{CPP_TYPES[kind]} *{name}"
            for name, kind in self.buffers
        ]
        integers = [f"{CPP_TYPES[kind]} {name}" for name, kind in self.dims]
        return ", ".join(pointers + integers)

    @property
    def written(self) -> tuple[str, ...]:
        """The buffers that are written."""
        raise NotImplementedError

    def access(self, buffer: str, most: int, *steps: str) -> int:
        """Elements of a buffer that can be read at once where it is read ``most`` at a time.

        Args:
            buffer: its name.
            most: a power of two; every read begins at a multiple behind the start of a row.
            steps: dims that lead from one row to the next, in elements.

        """
        known = dict(self.hints)
        kind = dict(self.buffers)[buffer]
        size = DType(kind).itemsize
        of_rows = (known.get(step, 1) * size for step in steps)
        return max(1, math.gcd(ACCESS, most * size, known.get(buffer, 1), *of_rows) // size)


def vector(dtype: str, *places: int) -> int:
    """Elements of 16 bytes; fewer where the places, in elements of a row, are no multiples."""
    return math.gcd(ACCESS // DType(dtype).itemsize, *places)


GOOD = 0.85
"""Of the largest share of lanes with work: shares above are as good."""


Units: TypeAlias = "Sequence[tuple[int, int]]"
"""The work of a row: how many units of a kind there are, and the accesses of each."""


def lanes_of(units: Units, wanted: int = 2) -> int:
    """Lanes of a warp for a row: few of the warp have nothing to do.

    Of numbers that are about as good, the one that leaves a lane the nearest to ``wanted`` accesses
    of 16 bytes.
    """
    possible = [n for n in range(1, WARP + 1) if n <= PLAIN_LANES or n & (n - 1) == 0]
    best = max(busy(units, n) for n in possible)
    good = [n for n in possible if busy(units, n) >= GOOD * best]
    return min(good, key=lambda n: (abs(accesses(units, n) - wanted), -busy(units, n), -n))


def accesses(units: Units, lanes: int) -> int:
    """Accesses of the lane that has the most."""
    return sum(-(-count // lanes) * each for count, each in units)


def busy(units: Units, lanes: int) -> float:
    """The share of a warp's lanes that have work, with so many lanes for a row.

    More lanes than a warp are the whole warps of a block.
    """
    rows = max(1, WARP // lanes)
    slots = max(WARP, lanes) * accesses(units, lanes)
    return accesses(units, 1) * rows / slots


def rounding(name: str, dtype: str) -> str:
    """The statement that rounds a float to a type; empty for float32."""
    return "" if dtype == "f32" else f"{name} = rounded<{CPP_TYPES[dtype]}>({name});"


def literal(value: float) -> str:
    """A float32 constant."""
    return f"{value!r}f"


__all__ = [
    "CPP_TYPES",
    "MOST_THREADS",
    "NARROW",
    "WARP",
    "CudaKernel",
    "Units",
    "accesses",
    "busy",
    "lanes_of",
    "literal",
    "rounding",
    "vector",
]
