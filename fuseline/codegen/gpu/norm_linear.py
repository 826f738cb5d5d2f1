"""A norm and the products that read it in one kernel, in Triton, for one row or a few.

Each block normalises the rows for itself: it reads them, and the norm's weight, from the cache
behind memory, which costs as much as some of its weights. So a block takes several groups of
columns one after another, and keeps the rows in registers meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from fuseline.codegen.gpu.kernel import TL_TYPES
from fuseline.codegen.gpu.linear import SIZES, VECTOR_BYTES, LinearRowsKernel
from fuseline.codegen.norms import Norm

BLOCKS = 256
"""Blocks that a launch should have: about two for each multiprocessor."""

MOST_GROUPS = 8
"""Groups of columns that a block takes, at most: rows are then a small part of what it reads."""

HELD = 32
"""Elements of the rows that a thread should hold, all in all: as many registers."""

MOST_HELD = 64
"""Elements that it can hold, beside the weights that are on their way."""


@dataclass(frozen=True, kw_only=True)
class NormLinearKernel(LinearRowsKernel, template="triton/norm_linear.py.jinja"):
    """`LinearRowsKernel` of the RMS norm of x, or of the sum of x and a residual.

    The first block writes the norm, and the sum.

    Attributes:
        norm: what is done to a row before it is multiplied.
        groups: of ``block_n`` columns, that a block takes one after another.
    """

    norm: Norm
    groups: int = 1

    @property
    def masked_n(self) -> bool:
        """Whether the last block has fewer columns."""
        return bool(self.n % (self.block_n * self.groups))

    @property
    def norm_type(self) -> str:
        """The type of the norm."""
        return TL_TYPES[self.norm.dtype]

    @property
    def share(self) -> str:
        """What a sum over a row is multiplied by to give the mean."""
        return repr(1.0 / self.k)

    @property
    def read(self) -> tuple[str, ...]:
        """The operands that are read row by row."""
        return ("x", *["summand"] * self.norm.residual)

    @property
    def written(self) -> tuple[str, ...]:
        """The results of the norm."""
        return (*["sum"] * self.norm.residual, "normed")

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        rows = ((name, self.x_dtype) for name in self.read)
        scale = [("scale", self.norm.weight)] if self.norm.weight else []
        made = ((name, self.x_dtype) for name in self.written)
        return (*rows, *scale, ("w", self.weight_dtype), *made, *self.epilogue_buffers)

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        rows = ((f"{name}_row", "i64") for name in (*self.read, *self.written))
        return (("rows", "i32"), *rows, *self.epilogue_dims)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"{self.norm.title}. {super().title}"


def norm_linear_kernels(rows: LinearRowsKernel, norm: Norm) -> Iterator[NormLinearKernel]:
    """The kernels instead of one of a product of few rows, the likeliest first; none, where threads
    cannot hold the rows.
    """
    vector = VECTOR_BYTES // SIZES[rows.weight_dtype]
    warps = rows.warps
    while warps < 16 and rows.block_m * rows.k > HELD * 32 * warps:
        warps *= 2
    if rows.block_m * -(-rows.k // (32 * warps)) > MOST_HELD:
        return
    groups = MOST_GROUPS
    while groups > 1 and -(-rows.n // (rows.block_n * groups)) < BLOCKS:
        groups //= 2
    given = {field.name: getattr(rows, field.name) for field in fields(rows)}
    given |= {"warps": warps, "block_k": warps * 32 * vector}
    made = NormLinearKernel(**given, norm=norm, groups=groups)
    yield made
    if groups > 1:
        yield replace(made, groups=groups // 2)
    if groups < MOST_GROUPS:
        yield replace(made, groups=2 * groups)
    if warps < 16 and 2 * warps * 32 * vector <= rows.k:
        yield replace(made, warps=2 * warps, block_k=2 * made.block_k)


__all__ = ["NormLinearKernel", "norm_linear_kernels"]
