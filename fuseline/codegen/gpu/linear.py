"""Linear products in Triton: the contexts of the loop orders, and of the step behind a product.

`linear_choice.py` says which one is used, and with which blocking, for which token counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from fuseline.codegen.gpu.kernel import TL_TYPES, TritonKernel
from fuseline.codegen.gpu.scalar import SHORT, functions
from fuseline.ir.ops.raised import Activation

VECTOR_BYTES = 16
"""What a thread loads at once."""

SIZES = {"f32": 4, "bf16": 2, "f16": 2}
"""Bytes of an element."""

_PARTS = {"bf16": 1, "f16": 2, "f32": 3}
"""Numbers of 8 significant bits that an element is the sum of: 8, 11 and 24 bits."""

_ACTIVATED: dict[Activation, str] = {
    "silu": "fl_silu(value, {short})",
    "gelu": "fl_gelu_erf(value)",
    "gelu_tanh": "fl_gelu_tanh(value, {short})",
    "relu": "tl.where(value < 0.0, 0.0, value)",
    "relu2": "tl.where(value < 0.0, 0.0, value * value)",
}


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """What happens to products ``p`` before they are results, and where those go.

    ``p = round(x @ w + bias)``; gated: ``p = round(round(act(gate)) * up)``; with a residual
    ``p = round(residual + p)``. ``round`` is to ``dtype``, that of the residual and the results.

    Attributes:
        outputs: widths of the results; N is their sum. Gated: one, the width of gate.
        dtype: what products round to.
        bias: type of the bias ``[N]`` (gated ``[2 N]``), if there is one.
        activation: of gate, where the product is gated.
        residual: whether one ``[rows, N]`` is added.
    """

    outputs: tuple[int, ...]
    dtype: str
    bias: str | None = None
    activation: Activation | None = None
    residual: bool = False

    @property
    def n(self) -> int:
        """Columns of all results together."""
        return sum(self.outputs)

    @property
    def gated(self) -> bool:
        """Whether there are two products, gate and up."""
        return self.activation is not None

    @property
    def halves(self) -> tuple[str, ...]:
        """The products, by name: ``value`` alone, or that of gate, and ``up``."""
        return ("value", "up") if self.gated else ("value",)

    @property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """Number, first column and the column behind the last, of each result."""
        ends = tuple(accumulate(self.outputs))
        return tuple((i, end - self.outputs[i], end) for i, end in enumerate(ends))

    @property
    def type(self) -> str:
        """The type that products round to."""
        return TL_TYPES[self.dtype]

    @property
    def activated(self) -> str:
        """The activation of ``value``."""
        if self.activation is None:
            return ""
        return _ACTIVATED[self.activation].format(short=self.dtype in SHORT)

    @property
    def functions(self) -> tuple[str, ...]:
        """What is called of `_math.py.jinja`."""
        return functions([self.activated])

    @property
    def terms(self) -> str:
        """What is done, for the head of a source."""
        found = [f"{self.activation} gate"] * self.gated + ["bias"] * bool(self.bias)
        return "".join(f", {term}" for term in (*found, *["residual"] * self.residual))

    @property
    def epilogue_buffers(self) -> tuple[tuple[str, str], ...]:
        """Bias, residual and results."""
        found = [("bias", self.bias)] if self.bias else []
        found += [("residual", self.dtype)] * self.residual
        return (*found, *((f"y{i}", self.dtype) for i, _ in enumerate(self.outputs)))

    @property
    def epilogue_dims(self) -> tuple[tuple[str, str], ...]:
        """Row strides of residual and results."""
        found = [("residual_row", "i64")] * self.residual
        return (*found, *((f"y{i}_row", "i64") for i, _ in enumerate(self.outputs)))


@dataclass(frozen=True, kw_only=True)
class LinearKernel(Epilogue, TritonKernel):
    """``y[rows, N] = epilogue(x[rows, k] @ w[N, k].T)``, accumulated in float32.

    The weights ``[N, k]`` are dense (gated: ``[2 N, k]``, gate first). Rows of x, residual and
    results may lie apart; elements of a row lie side by side.

    Attributes:
        k: width of x.
        x_dtype: elements of x.
        weight_dtype: elements of the weights.
        block_n: columns of a block, of each half.
        block_m: rows of a block, a power of two.
        block_k: elements of a row that a block takes at once.
    """

    k: int
    x_dtype: str
    weight_dtype: str
    block_n: int
    block_m: int
    block_k: int

    @property
    def masked_n(self) -> bool:
        """Whether the last block has fewer columns."""
        return bool(self.n % self.block_n)

    @property
    def masked_k(self) -> bool:
        """Whether the last step has fewer elements."""
        return bool(self.k % self.block_k)

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("x", self.x_dtype), ("w", self.weight_dtype), *self.epilogue_buffers)

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("rows", "i32"), ("x_row", "i64"), *self.epilogue_dims)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Linear: {self.n} x {self.k} {self.weight_dtype}{self.terms}; x {self.x_dtype}"


@dataclass(frozen=True, kw_only=True)
class LinearRowsKernel(LinearKernel, template="triton/linear_rows.py.jinja"):
    """One or a few rows of x: weights go from memory to registers, and are multiplied there.

    A thread takes the same places of every weight row of its block, 16 bytes at a time, so x is
    read once a block. The next step's weights are asked for before this step's are used: there is
    always a step in flight. ``block_k`` is what all threads of a block take of one row.

    Attributes:
        least: rows that there are at least, up to ``block_m``.
        ready: whether the weights are parameters, which nothing writes: the first of them are asked
            for while the kernel ahead still runs.
    """

    varies = "it is for few tokens"

    least: int = 1
    ready: bool = False

    @property
    def vector(self) -> int:
        """Elements of a weight row that a thread takes at once."""
        return VECTOR_BYTES // SIZES[self.weight_dtype]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block_k // self.vector

    @property
    def steps(self) -> int:
        """Runs of ``block_k`` that a row has."""
        return -(-self.k // self.block_k)

    @property
    def reach(self) -> int:
        """Elements of a row with those that the last step lacks."""
        return self.steps * self.block_k


@dataclass(frozen=True, kw_only=True)
class LinearTileKernel(LinearKernel, template="triton/linear_tile.py.jinja"):
    """Several rows of x: tiles of x and of the weights go through shared memory to `tl.dot`.

    The compiler copies ``stages - 1`` steps ahead. Operands that differ in type are cut into parts
    of type bf16, whose products are exact, so that the result is float32's.

    ``splits`` blocks share a tile of the result, by runs of K, where there are too few tiles for a
    device; each then writes its part in float32, ``[splits, rows, halves * N]``, and
    `LinearFinishKernel` adds them in order.

    Attributes:
        columns: whether the weights lie ``[k, N]``.
        splits: parts of K.
    """

    columns: bool = False
    splits: int = 1

    def why_varies(self) -> str:
        """One block goes through the whole of K in one order."""
        return "" if self.splits == 1 else "K is cut over as many blocks as fill the device"

    @property
    def x_parts(self) -> int:
        """The numbers of type bf16 that an element of x is the sum of; 1 where it stays whole."""
        return 1 if self.x_dtype == self.weight_dtype else _PARTS[self.x_dtype]

    @property
    def w_parts(self) -> int:
        """The same of a weight."""
        return 1 if self.x_dtype == self.weight_dtype else _PARTS[self.weight_dtype]

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """The parts of x and of the weight that are multiplied, the smallest products first."""
        pairs = ((i, j) for i in range(self.x_parts) for j in range(self.w_parts))
        return tuple(sorted(pairs, key=lambda pair: -sum(pair)))

    @property
    def share(self) -> int:
        """Elements of K of each part."""
        steps = -(-self.k // self.block_k)
        return -(-steps // self.splits) * self.block_k

    @property
    def masked_k(self) -> bool:
        """Whether some step has fewer elements."""
        return bool(self.k % self.block_k) or self.share * self.splits != self.k

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return super().buffers if self.splits == 1 else (*super().buffers[:2], ("part", "f32"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return super().dims if self.splits == 1 else super().dims[:2]


@dataclass(frozen=True, kw_only=True)
class LinearFinishKernel(Epilogue, TritonKernel, template="triton/linear_finish.py.jinja"):
    """The epilogue of products that lie in memory: parts to be added, or rounded already.

    ``part`` is ``[splits, rows, halves * N]`` of ``part_dtype`` with rows ``part_row`` apart; it
    may be the result, where that is one and rows lie alike.

    Attributes:
        part_dtype: its elements; what is not ``f32`` was rounded, and has its bias.
        splits: parts to be added.
        block_m: rows of a block.
        block_n: columns of a block.
    """

    part_dtype: str
    block_m: int
    block_n: int
    splits: int = 1

    def why_varies(self) -> str:
        """What is rounded already has one addend."""
        return "" if self.splits == 1 else "K is cut over as many blocks as fill the device"

    @property
    def masked_n(self) -> bool:
        """Whether the last block has fewer columns."""
        return bool(self.n % self.block_n)

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("part", self.part_dtype), *self.epilogue_buffers)

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("rows", "i32"), ("part_row", "i64"), *self.epilogue_dims)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Linear: the end of a product of {self.n} columns{self.terms}"


__all__ = [
    "SIZES",
    "VECTOR_BYTES",
    "Epilogue",
    "LinearFinishKernel",
    "LinearKernel",
    "LinearRowsKernel",
    "LinearTileKernel",
]
