"""Routed experts for target cpu: the context of the kernel that computes `experts` and `moe`.

It is launched twice. The first part multiplies the tokens of each expert by gate and up and leaves
the activated rows in scratch; the second multiplies those by down, weighs them and adds up what
belongs to a token. One kernel does both, as the products are most of it: it is built in little more
than half the time of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.cpu.linear import FLOATS, WIDEST
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.mixtures import Mixture
from fuseline.codegen.norms import promote
from fuseline.ir.types import Dim, dim


class Part(IntEnum):
    """What a launch computes."""

    UP = 0
    DOWN = 1


@dataclass(frozen=True)
class ExpertsKernel(Mixture, KernelTemplate, template="cpp/experts.cpp.jinja"):
    """Both parts of `experts`.

    The pairs of a token and one of its ``top`` experts are sorted by expert, by every worker for
    itself. All tokens of an expert are multiplied together, ``token_block`` at a time. The shared
    branch is one more expert that every token goes to; ``identities`` more pass x on as it is.
    Indices outside of the experts and those are a fault, and nothing is computed. Results do not
    depend on the number of workers, nor on how many columns of y are computed at once. Where the
    processor multiplies bfloat16, what is too small for a normal number counts as 0.

    Buffers, in order:
        indices      ``[T, top]`` i64, dense
        weights      ``[T, top]`` of ``weight_dtype``, dense
        x            ``[T, hidden]`` of ``dtype``, elements of a row side by side
        up           the matrices of gate and up
        up_bias      ``[experts, 2 inner]`` (not gated: ``[experts, inner]``), if any
        shared_up    gate and up ``[inner, hidden]`` of the shared branch, one behind the other
        down         ``[experts, out, inner]``, transposed ``[experts, inner, out]``
        down_bias    ``[experts, out]``, if any
        shared_down  ``[out, shared inner]``
        shared_gate  ``[T, 1]``, if any
        y            ``[T, out]`` of ``out_dtype``
        scratch      ``scratch_bytes(T, columns, workers)``
    Dims: the `Part`, columns of y at once, T, row strides of x, of y, and of shared_gate, if any

    Attributes:
        token_block: tokens of an expert that are multiplied at once.
        strip: columns that an epilogue takes at once.
        steady: whether matrices ``[K, N]`` are added up in one order, however many tokens an expert
            has: then, as for others, the bits of a token do not depend on those beside it.
    """

    token_block: int = 64
    strip: int = 32
    steady: bool = False

    def why_varies(self) -> str:
        """Rows along K are added in one order for any tokens, columns only where that is asked."""
        turned = self.up_transposed or self.down_transposed
        return "" if self.steady or not turned else "one token of an expert is added far apart"

    def __post_init__(self) -> None:
        """Refuse types and widths without a kernel."""
        types = (self.dtype, self.weight_dtype, self.out_dtype)
        if not set(types) <= set(FLOATS):
            raise ValueError(f"no kernel of experts for {', '.join(types)}")
        sizes = (self.experts, self.top, self.hidden, self.inner, self.out)
        if min(sizes) < 1:
            raise ValueError(f"no kernel of experts for sizes {sizes}")

    @property
    def x_dtype(self) -> str:
        """The element type of what the matrices are multiplied by."""
        return self.dtype

    @property
    def x_type(self) -> str:
        """The C++ type of x, the matrices and the biases."""
        return CPP_TYPES[self.dtype]

    @property
    def route_type(self) -> str:
        """The C++ type of the router's weights."""
        return CPP_TYPES[self.weight_dtype]

    @property
    def out_type(self) -> str:
        """The C++ type of y."""
        return CPP_TYPES[self.out_dtype]

    @property
    def kind_type(self) -> str:
        """The C++ type of a product and the router's weight, promoted."""
        return CPP_TYPES[promote(self.dtype, self.weight_dtype)]

    @property
    def gate_type(self) -> str:
        """The C++ type of the shared branch's gate."""
        return CPP_TYPES[(self.shared and self.shared.gate_dtype) or self.dtype]

    @property
    def pairs(self) -> bool:
        """Whether weights widen two at a time (see `_tile.h.jinja`)."""
        return self.dtype == "bf16"

    @property
    def shared_inner(self) -> int:
        """The width of the shared branch; 0 where there is none."""
        return self.shared.inner if self.shared else 0

    @property
    def panel_floats(self) -> int:
        """Scratch for packed rows of a block of tokens."""
        widest = max(self.hidden, self.inner, self.shared_inner)
        return self.token_block * (-(-widest // (2 * WIDEST)) * 2 * WIDEST)

    @property
    def wait_floats(self) -> int:
        """Scratch for accumulators between blocks of K: twelve vectors for every panel of four."""
        return 12 * WIDEST * -(-self.token_block // 4)

    @property
    def sum_floats(self) -> int:
        """Scratch for the sums of a strip: two sides of three rows, or one token's six rows."""
        return 6 * max(self.token_block, 2) * self.strip

    @property
    def run_floats(self) -> int:
        """Sums of a run of columns, of all sides and tokens together, for transposed matrices."""
        return self.sum_floats // 2

    @property
    def column_block(self) -> int:
        """How far the sums over K of a transposed matrix go before they are added up."""
        return 256

    @property
    def packed_columns(self) -> int:
        """Columns of a transposed matrix that are packed at once, a block of them."""
        return 64

    @property
    def packed_floats(self) -> int:
        """Scratch for them."""
        return (
            self.packed_columns * self.column_block
            if self.up_transposed or self.down_transposed
            else 0
        )

    def scratch_bytes(self, tokens: Dim, columns: int, workers: Dim) -> Dim:
        """Bytes of scratch for so many tokens and workers (numbers or expressions).

        First come the activated rows, that both parts use; then what is a worker's own.
        """
        size = 4 if self.dtype == "f32" else 2
        pairs = dim(self.top * tokens)
        rows = size * (pairs * self.inner + tokens * self.shared_inner) + 2 * 64
        waiting = pairs if self.combine == "slots" else tokens
        waiting = dim(waiting + tokens) if self.shared else waiting
        floats = self.hidden + self.panel_floats + self.wait_floats + self.sum_floats
        floats += self.packed_floats + waiting * min(columns, self.out)
        own = 4 * (2 * (self.experts + self.identities) + 4 + pairs + floats) + 2 * 64
        return dim(rows + workers * own)
