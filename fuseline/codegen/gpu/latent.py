"""Products of rows with the weight rows of a head: into the latent space, out of it, expansion."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.gpu.kernel import TL_TYPES, TritonKernel, strides


@dataclass(frozen=True, kw_only=True)
class HeadProductKernel(TritonKernel, template="triton/head_product.py.jinja"):
    """``y[b, h, s, :] = x[b, h, s, :] @ W_h`` for every head h, with sums in float32.

    x is ``[B, heads, S, inner]`` and y ``[B, heads, S, outer]`` of ``dtype`` by strides of batch,
    head and token; either may lie in scratch (``views``), ``x_at`` and ``y_at`` bytes behind its
    begin. The weight is dense. The rows of head h begin at ``h // repeat * weight_rows +
    first_row``: ``inner`` rows of ``outer`` elements or, with ``transposed``, ``outer`` rows of
    ``inner``. With ``later`` the argument ``first`` is added to the head of the weight.

    With ``positions`` (i64, ``seen`` of them in a row) tokens behind the last position are left
    out: nobody reads what would become of them.
    """

    varies = ""

    dtype: str
    inner: int
    outer: int
    weight_rows: int
    first_row: int = 0
    repeat: int = 1
    transposed: bool = False
    later: bool = False
    positions: bool = False
    views: tuple[str, ...] = ()
    block_rows: int = 16
    block_inner: int = 64
    block_outer: int = 128

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        found = [(name, self.dtype) for name in ("x", "weight", "y") if name not in self.views]
        found += [("positions", "i64")] * self.positions
        return (*found, *[("scratch", "u8")] * bool(self.views))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        found = [("rows", "i32"), ("tokens", "i32"), *[("first", "i32")] * self.later]
        found += [("seen", "i32")] * self.positions
        found += strides("x", "y", axes="bhs")
        return (*found, *((f"{name}_at", "i64") for name in self.views))

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Rows of {self.inner} times a weight of each head, to {self.outer} {self.dtype}"

    @property
    def whole_inner(self) -> bool:
        """Whether blocks divide ``inner``."""
        return self.inner % self.block_inner == 0

    @property
    def whole_outer(self) -> bool:
        """Whether blocks divide ``outer``."""
        return self.outer % self.block_outer == 0

    @property
    def weight_row(self) -> int:
        """Elements of a row of the weight."""
        return self.inner if self.transposed else self.outer

    @property
    def type(self) -> str:
        """The type of x and y."""
        return TL_TYPES[self.dtype]
