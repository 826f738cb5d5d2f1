"""Row norms in CUDA C++: a row has the threads that its width asks for, all of them with work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fuseline.codegen.gpu.cuda import (
    CPP_TYPES,
    MOST_THREADS,
    NARROW,
    WARP,
    CudaKernel,
    busy,
    lanes_of,
    literal,
    rounding,
    vector,
)
from fuseline.codegen.gpu.norm import NormOfRows, RowNormKernel
from fuseline.codegen.norms import promote

HELD = 32
"""Elements of a row that a thread holds, at most."""


@dataclass(frozen=True)
class CudaRowNormKernel(NormOfRows, CudaKernel, template="cuda/row_norm_cuda.cu.jinja"):
    """The norm of `RowNormKernel`, with its arguments, by ``lanes`` threads a row.

    Up to 32 lanes lie within a warp, which then has as many rows as fit; more are all threads of a
    block, which has one row.
    """

    varies = "how a row is cut over threads depends on where its neighbours lie"

    lanes: int = WARP

    def __post_init__(self) -> None:
        """Reject blocks that a row does not fit."""
        if not 1 <= self.lanes <= WARP and not self.lanes == self.threads <= MOST_THREADS:
            raise ValueError(f"{self.lanes} lanes of a block of {self.threads} threads")

    @property
    def written(self) -> tuple[str, ...]:
        """The buffers that are written."""
        return ("sum", "y")

    @property
    def warp_rows(self) -> int:
        """Rows of a warp; 0 where a row has the whole block."""
        return WARP // self.lanes

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(1, self.warp_rows * self.warps)

    @property
    def unit(self) -> int:
        """Elements that a thread takes side by side."""
        return vector(self.dtype, self.width)

    @property
    def loads(self) -> int:
        """Units of a thread."""
        return -(-(self.width // self.unit) // self.lanes)

    @property
    def busy(self) -> float:
        """The share of the threads that have work."""
        return busy([(self.width // self.unit, 1)], self.lanes)

    @property
    def masked(self) -> bool:
        """Whether some threads have fewer."""
        return self.loads * self.lanes * self.unit != self.width

    @property
    def accesses(self) -> dict[str, int]:
        """Elements of each buffer that are moved at once."""
        levels = ["inner"] if self.flat else ["outer", "inner"]
        found = {
            row: self.access(row, self.unit, *(f"{row}_{level}" for level in levels))
            for row in self.rows
        }
        given = [name for name, kind in (("weight", self.weight), ("bias", self.bias)) if kind]
        return found | {name: self.access(name, self.unit) for name in given}

    @property
    def is_wide(self) -> bool:
        """Whether all rows are moved 16 bytes at once."""
        kinds = dict(self.buffers)
        return all(self.accesses[row] == vector(kinds[row]) for row in self.rows)

    @property
    def types(self) -> dict[str, str]:
        """The C++ type of each buffer's elements."""
        return {name: CPP_TYPES[kind] for name, kind in self.buffers}

    @property
    def total(self) -> str:
        """The function that sums over a row, but for the number of the use behind it."""
        return f"sum_lanes<{self.lanes}" if self.warp_rows else f"sum_block<{self.warps}"

    @property
    def share(self) -> str:
        """What a sum over a row is multiplied by to give the mean."""
        return literal(1.0 / self.width)

    @property
    def epsilon(self) -> str:
        """What is added to the mean of the squares."""
        return literal(self.eps)

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done to an element ``n`` of the norm, in float32: statements."""
        early = self.cast == "before_weight"
        found = [rounding("n", self.dtype)] if early else []
        if self.weight:
            found += [f"float w = {literal(self.offset)} + weight_i[j];"] * bool(self.offset)
            found += [rounding("w", self.weight)] * (early and bool(self.offset))
            found.append(f"n = n * {'w' if self.offset else 'weight_i[j]'};")
            if self.bias and early:
                found.append(rounding("n", promote(self.dtype, self.weight)))
        found += ["n = n + bias_i[j];"] * bool(self.bias)
        return tuple(step for step in found if step)


def forms(norm: NormOfRows, *, warps: int) -> list[CudaRowNormKernel]:
    """The kernels of a norm, the likelier first.

    Args:
        norm: what is done.
        warps: of a block that has several rows.

    Raises:
        ValueError: there is none: a row is too long for the threads of a block.

    """
    fields: dict[str, Any] = {f.name: getattr(norm, f.name) for f in dataclasses.fields(NormOfRows)}
    unit = vector(norm.dtype, norm.width)
    units = norm.width // unit
    if units <= NARROW:
        return [CudaRowNormKernel(**fields, lanes=lanes_of([(units, 1)]), warps=warps)]
    found: dict[int, None] = {}
    for loads in (2, 1, 4, *range(5, HELD // unit + 1)):
        threads = -(-units // (loads * WARP)) * WARP
        if threads <= MOST_THREADS and loads * unit <= HELD:
            found[threads] = None
    if not found:
        raise ValueError(f"rows of {norm.width} elements, {unit} at once")
    return [CudaRowNormKernel(**fields, lanes=n, warps=n // WARP) for n in list(found)[:3]]


def leads(kernel: CudaRowNormKernel, triton: RowNormKernel) -> bool:
    """Whether a kernel is likelier to do well than Triton's, by what is known without a GPU.

    Both wait for memory, so Triton's stands where nothing sets them apart. What does: its block is
    a power of two, and with rows of 5120 or 7168 elements three or one of eight threads have
    nothing to read while they hold registers and take their turn. Here all have, so that as many
    warps keep more bytes in flight. That takes rows of which 16 bytes can be read at once.
    """
    return kernel.is_wide and 0.95 * kernel.busy > triton.width / triton.block


__all__ = ["CudaRowNormKernel", "forms", "leads"]
