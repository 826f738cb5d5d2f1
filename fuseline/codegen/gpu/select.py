"""The kernels of `torch.topk` and of running sums along rows, in Triton."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.gpu.gather import LARGEST_INDEX
from fuseline.codegen.gpu.kernel import TritonKernel

FLOATS = ("f64", "f32", "bf16", "f16")


@dataclass(frozen=True)
class TopKKernel(TritonKernel, template="triton/topk.py.jinja"):
    """``values[r], indices[r] = topk(x[r, :width], k)``; grid (ceil(rows / block_rows),).

    Of equal elements, those with lower indices count first, and stand first; a NaN is larger than
    anything. (Torch promises no order; its kernels for CUDA and for a CPU differ.)

    Attributes:
        dtype: a floating type up to 32 bits, or an integer up to 32 bits.
        width: elements of a row.
        k: how many are taken, one after the other.
        numbers: name and type of each integer.
        step: from one row to the next, as text.
        rows: their number, as text.
        block_rows: rows of a block.
        block: the power of two that holds a row.
        largest: or smallest.

    """

    varies = ""

    dtype: str
    width: int
    k: int
    numbers: tuple[tuple[str, str], ...]
    step: str
    rows: str
    block_rows: int
    block: int
    largest: bool

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("x", self.dtype), ("values", self.dtype), ("indices", "i64"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return self.numbers

    @property
    def floating(self) -> bool:
        """Whether elements are ordered by the bits of the float32 that they are widened to."""
        return self.dtype in FLOATS

    @property
    def largest_index(self) -> int:
        """What indices are subtracted from."""
        return LARGEST_INDEX


@dataclass(frozen=True)
class CumsumKernel(TritonKernel, template="triton/cumsum.py.jinja"):
    """``y[o, j, i] = sum(x[o, :j + 1, i])`` over ``[outer, n, inner]``; y is dense.

    A block takes ``block_rows`` lines (o, i), ``block`` elements of each at a time. Floating
    numbers keep their type, as in `torch.cumsum`; others are added as i64.

    Attributes:
        dtype: of x.
        numbers: name and type of each integer.
        lines: outer * inner, as text; the others are extents and strides of x too.
        inner: see ``lines``.
        length: see ``lines``.
        outer_step: see ``lines``.
        inner_step: see ``lines``.
        step: see ``lines``.
        block_rows: see above.
        block: see above.

    """

    varies = ""

    dtype: str
    numbers: tuple[tuple[str, str], ...]
    lines: str
    inner: str
    length: str
    outer_step: str
    inner_step: str
    step: str
    block_rows: int
    block: int

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("x", self.dtype), ("y", self.dtype if self.dtype in FLOATS else "i64"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return self.numbers

    @property
    def sum_type(self) -> str:
        """Triton's type of the sum; integers wrap around."""
        if self.dtype in ("bf16", "f16"):
            return "tl.float32"
        return "tl.float64" if self.dtype in FLOATS else "tl.int64"


__all__ = ["CumsumKernel", "TopKKernel"]
