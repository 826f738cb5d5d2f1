"""Adapters of rows for target cpu: the context of the kernel that computes `multi_lora`.

An adapter is an expert of which a row has one, without an activation: sorting, streaming and
register tiles are those of `ExpertsKernel`. The kernel is launched twice. The first part leaves the
rows that A gives in scratch, the second multiplies them by B and adds base.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fuseline.codegen.adapters import Adapters, Step
from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.cpu.experts import ExpertsKernel
from fuseline.codegen.mixtures import Element
from fuseline.ir.types import Dim


class Part(IntEnum):
    """What a launch computes."""

    LOW = 0
    HIGH = 1


@dataclass(frozen=True, kw_only=True)
class MultiLoraKernel(ExpertsKernel, template="cpp/multi_lora.cpp.jinja"):
    """Both parts of `multi_lora`.

    Rows of an adapter are multiplied together, and each matrix of an adapter that has rows is read
    once for up to ``token_block`` of them; others are not read. Numbers outside are a fault, and
    nothing is computed. Results do not depend on the number of workers.

    Buffers, in order:
        ids      ``[T]`` i64, dense
        x        ``[T, depth]``, elements of a row side by side
        a, b     the matrices, dense
        base     ``[T, width]``, elements of a row side by side, if any
        factor   ``[T]``, dense, if any
        y        ``[T, width]``, elements of a row side by side
        scratch  ``scratch_bytes(T, 0, workers)``
    Dims: the `Part`, T, row strides of x, of y, and of base, if any

    Attributes:
        adapters: what is computed.
    """

    adapters: Adapters

    @classmethod
    def of(cls, adapters: Adapters, *, steady: bool = False) -> MultiLoraKernel:
        """The kernel of some adapters."""
        a = adapters
        return cls(
            experts=a.count,
            identities=int(a.skips),
            top=1,
            hidden=a.depth,
            inner=a.rank,
            out=a.width,
            dtype=a.dtype,
            weight_dtype=a.factor or a.dtype,
            out_dtype=a.out,
            body=Element((), "g"),
            up_strides=(a.rank * a.depth, 0, a.rank if a.a_transposed else a.depth),
            gated=False,
            up_transposed=a.a_transposed,
            down_transposed=a.b_transposed,
            combine="experts",
            adapters=a,
            steady=steady,
        )

    @property
    def title(self) -> str:
        """What is done, for the head of a source."""
        return self.adapters.title

    @property
    def base_type(self) -> str:
        """The C++ type of base; that of y where there is none."""
        return CPP_TYPES[self.adapters.base or self.out_dtype]

    @property
    def low_steps(self) -> tuple[Step, ...]:
        """What happens to the sums of the first product."""
        return _in_cpp(self.adapters.low_steps)

    @property
    def high_steps(self) -> tuple[Step, ...]:
        """What happens to the sums of the second product."""
        return _in_cpp(self.adapters.high_steps)

    @property
    def total_steps(self) -> tuple[Step, ...]:
        """The sum with base."""
        return _in_cpp(self.adapters.total_steps)

    def scratch(self, rows: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for so many rows and workers."""
        return self.scratch_bytes(rows, 0, workers)


def _in_cpp(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    return tuple((expression, CPP_TYPES[kind]) for expression, kind in steps)


__all__ = ["MultiLoraKernel", "Part"]
