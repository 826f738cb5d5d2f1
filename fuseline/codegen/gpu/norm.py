"""Row norms in Triton: RMS and layer norm, with the residual sum before them where there is one."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.gpu.kernel import AT_HAND, TL_TYPES, TritonKernel, next_power_of_two
from fuseline.codegen.norms import Norm, promote

WIDEST = 32768
"""Elements of a row that one block holds in registers."""


@dataclass(frozen=True)
class NormOfRows(Norm):
    """The arguments of a norm of rows, in whatever language its kernel is.

    Rows are numbered ``o * inner + i``, and row (o, i) of an operand begins at ``o * outer stride +
    i * inner stride`` (in elements); with ``flat`` there is one level, and only the inner stride.
    With ``ready`` weight and bias are parameters, which nothing writes: they may be read while the
    kernel ahead still runs.
    """

    flat: bool = False
    ready: bool = False

    @property
    def ahead(self) -> bool:
        """Whether there is anything to read while the kernel ahead still runs."""
        return self.ready and bool(self.weight or self.bias)

    @property
    def rows(self) -> tuple[str, ...]:
        """The buffers that are walked row by row."""
        return ("x", *["residual", "sum"] * self.residual, "y")

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        found = [("x", self.dtype), *[("residual", self.dtype)] * self.residual]
        found += [("weight", self.weight)] if self.weight else []
        found += [("bias", self.bias)] if self.bias else []
        return (*found, *[("sum", self.dtype)] * self.residual, ("y", self.out))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        levels = ["inner"] if self.flat else ["outer", "inner"]
        counts = [("rows", "i32"), *[("inner", "i32")] * (not self.flat)]
        return (*counts, *((f"{row}_{level}", "i64") for row in self.rows for level in levels))


@dataclass(frozen=True)
class RowNormKernel(NormOfRows, TritonKernel, template="triton/row_norm.py.jinja"):
    """A norm of rows; a block takes ``block_rows`` of them, one after another in memory order."""

    varies = ""

    block_rows: int = 1

    @property
    def block(self) -> int:
        """The power of two that holds a row."""
        return next_power_of_two(self.width)

    @property
    def first(self) -> bool:
        """Whether weight and bias are read before the row, or else behind its sums."""
        return self.block * self.block_rows <= AT_HAND * 32 * self.warps

    @property
    def masked(self) -> bool:
        """Whether a block is wider than a row."""
        return self.block != self.width

    @property
    def type(self) -> str:
        """The type of x."""
        return TL_TYPES[self.dtype]

    @property
    def weight_type(self) -> str:
        """The type of the weight, empty without one."""
        return TL_TYPES.get(self.weight or "", "")

    @property
    def weighted_type(self) -> str:
        """The type that the product with the weight is rounded to before the bias is added."""
        return TL_TYPES[promote(self.dtype, self.weight) if self.weight else self.dtype]

    @property
    def out_type(self) -> str:
        """The type of y."""
        return TL_TYPES[self.out]

    @property
    def share(self) -> str:
        """What a sum over a row is multiplied by to give the mean."""
        return repr(1.0 / self.width)
