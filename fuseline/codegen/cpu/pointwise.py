"""Element-wise regions in C++: any chain of element-wise ops, with reductions over the inner axis.

A kernel walks the rows of a collapsed iteration space. What does not change along a row is computed
once for it; each reduction is a loop over the row, and so is what is left. Extents and strides are
run-time integers, so that one kernel serves all shapes of a region.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.kernel import KernelTemplate
from fuseline.ir.types import Dim, DType

STORED = {
    DType.F64: "double",
    DType.F32: "float",
    DType.BF16: "fl_bf16",
    DType.F16: "fl_f16",
    DType.I64: "int64_t",
    DType.I32: "int32_t",
    DType.I16: "int16_t",
    DType.I8: "int8_t",
    DType.U8: "uint8_t",
    DType.BOOL: "fl_bool",
}
"""The C++ type of an element in memory."""


@dataclass(frozen=True)
class Pointer:
    """Where a row of an operand or result begins, as C++."""

    name: str
    type: str
    start: str
    written: bool


@dataclass(frozen=True)
class Loop:
    """One walk along a row: a reduction, or the last one, which stores.

    ``before`` are statements of the row, ``carried`` what a reduction sets up for a row and
    ``partial`` for a part of it; ``reduction`` the clauses of the loop, ``body`` its statements,
    ``join`` adds a part to the row.
    """

    before: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    reduction: str = ""
    join: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointwiseKernel(KernelTemplate, template="cpp/pointwise.cpp.jinja"):
    """A region of element-wise ops over rows of ``n`` elements.

    ``buffers`` and ``dims`` name the arguments in order: operands, then results; ``n``, the extents
    ``e0``, ... of the axes around the row, and strides in elements. ``by_row`` says that workers
    share the rows, for reductions; otherwise they share the elements. Any extent may be 0.
    Numerics: each op rounds to the type of its result, as in eager; sums are accumulated in
    float32 over parts of 1024 elements, and the parts in float64.
    """

    varies = ""

    flags = ("-ffp-contract=off",)  # a product that is rounded is not what an fma adds

    title: str
    buffers: tuple[str, ...]
    dims: tuple[str, ...]
    outer: int
    by_row: bool
    pointers: tuple[Pointer, ...]
    constants: tuple[str, ...]
    loops: tuple[Loop, ...]
    last: tuple[str, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes around the row."""
        return tuple(range(self.outer))


@dataclass(frozen=True)
class Planned:
    """A kernel, the operands (by number) that it takes before the results, and its dims."""

    kernel: PointwiseKernel
    operands: tuple[int, ...]
    dims: tuple[Dim, ...]


__all__ = ["STORED", "Loop", "Planned", "Pointer", "PointwiseKernel"]
