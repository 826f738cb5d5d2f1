"""Routed experts in Triton: the contexts of the kernels that compute `experts` and `moe`.

A pair is a token and one of its experts; pair p is slot ``p % top`` of token ``p // top``. The
first product leaves the activated rows of all pairs in scratch, the second the rows that they
give, and a last kernel weighs these and adds up what belongs to a token. The shared branch goes
through the same products, its tokens being the pairs: in the same launches where its matrices have
the sizes of an expert's, else in launches beside them.

Every launch has the blocks that the worst case needs, and those without work end at once: nothing
waits for the host. A pair whose index stands for no expert adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fuseline.codegen.gpu.kernel import TL_TYPES, TritonKernel, next_power_of_two
from fuseline.codegen.gpu.scalar import SHORT, functions
from fuseline.codegen.mixtures import Element
from fuseline.codegen.norms import promote
from fuseline.ir.ops.experts import Combine

Find = Literal["all", "one", "alike", "sorted"]
"""How a block finds its pairs.

``all``: they follow one another, and there is one expert; ``one``: it has one pair; ``alike``: it
looks for the pairs with the expert of its own, and leaves them to the first of these; ``sorted``:
they lie side by side in the list that `ExpertsSortKernel` writes.
"""


@dataclass(frozen=True)
class ExpertsSortKernel(TritonKernel, template="triton/experts_sort.py.jinja"):
    """The pairs of each expert, in their order, one expert after the other.

    Writes ``start`` and ``stop`` of each expert at the head of the scratch (i32 ``[experts]`` each,
    ``stop_at`` bytes apart), and the list of pairs (i32) at ``pairs_at``.
    """

    varies = ""

    experts: int
    chunk: int = 1024

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("indices", "i64"), ("scratch", "u8"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("pairs", "i32"), ("pairs_at", "i64"))

    @property
    def stop_at(self) -> int:
        """Bytes from the starts to the stops."""
        return stops_at(self.experts)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"The pairs of each of {self.experts} experts, in their order"


def stops_at(experts: int) -> int:
    """Bytes of an integer for each expert, as a multiple of 16."""
    return -(-experts // 4) * 16


@dataclass(frozen=True)
class ExpertsProductKernel(TritonKernel, template="triton/experts_product.py.jinja"):
    """The rows of pairs by the matrices of their experts; with a body, what it makes of them.

    Rows come from ``x`` (row ``pair // top``, times the pair's weight where there is a
    ``weight_dtype``), or from scratch (one of ``pitch`` elements for each pair, ``in_at`` bytes
    from its head). Results go to scratch, rows of ``out_pitch`` elements, ``out_at`` bytes from
    its head. ``count`` is the number of pairs.

    Attributes:
        find: how a block finds its pairs.
        experts: how many there are.
        top: pairs of a token.
        depth: the width of the rows.
        width: columns of a result, half of the matrix's rows where there are two sides.
        dtype: of rows, matrices, biases and results.
        strides: in elements of the matrices, from an expert to the next, and to its up.
        n_stride, k_stride: from a column of the result to the next, and along the depth.
        pitch: elements of a row in scratch that is read; 0 where x is.
        out_pitch: of a row that is written.
        sides: matrices of an expert: gate and up, or one.
        interleaved: gate and up are every second row of one matrix.
        bias, round_bias: whether there is one, and whether the product is rounded before it.
        weight_dtype: of the weights that the rows are multiplied by.
        body: the activation, over ``g`` and, with two sides, ``u``; None: the product itself.
        block_m, block_n, block_k: pairs, columns of a side, and depth of a block.
        most: pairs that ``alike`` looks through.
        folded: the first blocks take the tokens of a shared branch of the same sizes, as pairs
            behind the others.

    """

    find: Find
    experts: int
    top: int
    depth: int
    width: int
    dtype: str
    strides: tuple[int, int]
    n_stride: int
    k_stride: int
    pitch: int
    out_pitch: int
    sides: int = 1
    interleaved: bool = False
    bias: bool = False
    round_bias: bool = True
    weight_dtype: str | None = None
    body: Element | None = None
    block_m: int = 16
    block_n: int = 32
    block_k: int = 64
    most: int = 128
    folded: bool = False

    def why_varies(self) -> str:
        """Sorted pairs, and all tokens, meet a matrix in blocks of one size."""
        return "" if self.find in ("sorted", "all") else "it is for few tokens"

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        found = [("indices", "i64")] if self.find in ("one", "alike") else []
        found += [] if self.pitch else [("x", self.dtype)]
        found += [("weights", self.weight_dtype)] if self.weight_dtype else []
        biases = [("biases", self.dtype)] * self.bias
        beside = [("beside", self.dtype)] * self.folded
        return (*found, ("matrix", self.dtype), *beside, *biases, ("scratch", "u8"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        source = ("in_at" if self.pitch else "x_stride", "i64")
        pairs = [("pairs_at", "i64")] if self.find == "sorted" else []
        tokens = [("tokens", "i32")] * self.folded
        return (("count", "i32"), *tokens, source, ("out_at", "i64"), *pairs)

    @property
    def stop_at(self) -> int:
        """Bytes from the starts of the experts' pairs to the stops."""
        return stops_at(self.experts)

    @property
    def expert_block(self) -> int:
        """The power of two that holds the experts."""
        return next_power_of_two(self.experts)

    @property
    def both(self) -> bool:
        """Whether gate and up are two products."""
        return self.sides == 2 and not self.interleaved

    @property
    def columns(self) -> int:
        """Columns of a product of a block."""
        return self.block_n * (2 if self.interleaved else 1)

    @property
    def all_columns(self) -> int:
        """Columns of a product of the kernel."""
        return self.width * (2 if self.interleaved else 1)

    @property
    def ragged_n(self) -> bool:
        """Whether the last block has columns that do not exist."""
        return self.width % self.block_n != 0

    @property
    def ragged_k(self) -> bool:
        """Whether the last step has a depth that does not exist."""
        return self.depth % self.block_k != 0

    @property
    def single(self) -> bool:
        """Whether a block has one pair: its product needs no tensor cores."""
        return self.block_m == 1

    @property
    def rows(self) -> str:
        """What the rows are called."""
        return "inner" if self.pitch else "x"

    @property
    def type(self) -> str:
        """The type of rows, matrices, biases and results."""
        return TL_TYPES[self.dtype]

    @property
    def functions(self) -> tuple[str, ...]:
        """What the body calls of `_math.py.jinja`."""
        return functions(self.body.statements) if self.body else ()

    @property
    def bias_stride(self) -> int:
        """Elements from the biases of an expert to those of the next."""
        return self.width * self.sides

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        what = f"{self.sides} x " * (self.sides > 1) + f"{self.depth} to {self.width} {self.dtype}"
        who = {
            "all": f"{self.block_m} tokens of a shared branch",
            "one": "one token and one of its experts",
            "alike": f"up to {self.block_m} tokens of one of {self.experts} experts",
            "sorted": f"up to {self.block_m} tokens of one of {self.experts} experts",
        }[self.find]
        beside = ", or of the shared branch" * self.folded
        return f"Product of {what} for {who}{beside}: {self.block_n} columns in a block"


@dataclass(frozen=True)
class ExpertsSumKernel(TritonKernel, template="triton/experts_sum.py.jinja"):
    """Weighs the rows of a token's pairs and adds them up, then adds the shared branch.

    Rows of pairs lie at ``rows_at`` bytes from the head of scratch, those of the shared branch at
    ``shared_at``; both have ``pitch`` elements.

    Attributes:
        experts, identities, top, out: as the mixture has them.
        dtype, weight_dtype, out_dtype: of rows, weights, and y.
        weighed: whether the weight multiplies what an expert gives.
        combine, routed_factor, factor: as the op has them.
        shared: whether there is a shared branch.
        gate_dtype: of its gate; None without one.
        block_t, block_n: tokens and columns of a block.

    """

    varies = ""

    experts: int
    identities: int
    top: int
    out: int
    dtype: str
    weight_dtype: str
    out_dtype: str
    pitch: int
    weighed: bool = True
    combine: Combine = "slots"
    shared: bool = False
    gate_dtype: str | None = None
    routed_factor: float = 1.0
    factor: float = 1.0
    block_t: int = 1
    block_n: int = 256

    @property
    def weights_needed(self) -> bool:
        """Whether the kernel multiplies by the router's weights."""
        return self.weighed or bool(self.identities)

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        found = [("indices", "i64")]
        found += [("weights", self.weight_dtype)] if self.weights_needed else []
        found += [("x", self.dtype)] if self.identities else []
        found += [("gate", self.gate_dtype)] if self.gate_dtype else []
        return (*found, ("y", self.out_dtype), ("scratch", "u8"))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        found = [("tokens", "i32"), ("y_stride", "i64"), ("rows_at", "i64")]
        found += [("x_stride", "i64")] * bool(self.identities)
        found += [("shared_at", "i64")] * self.shared
        return (*found, *[("gate_stride", "i64")] * bool(self.gate_dtype))

    @property
    def slots(self) -> int:
        """The power of two that holds the pairs of a token."""
        return next_power_of_two(self.top)

    @property
    def in_order(self) -> bool:
        """Whether pairs are added by the numbers of their experts."""
        return self.combine != "slots"

    @property
    def ragged(self) -> bool:
        """Whether the last block has columns that do not exist."""
        return self.out % self.block_n != 0

    @property
    def type(self) -> str:
        """The type of rows."""
        return TL_TYPES[self.dtype]

    @property
    def kind_type(self) -> str:
        """The type of a row times its weight."""
        return TL_TYPES[promote(self.dtype, self.weight_dtype)]

    @property
    def passed_type(self) -> str:
        """The type of x times its weight, where that is passed on."""
        return self.kind_type if self.weighed else self.type

    @property
    def out_type(self) -> str:
        """The type of y."""
        return TL_TYPES[self.out_dtype]

    @property
    def gate_type(self) -> str:
        """The type of the shared branch's gate; empty without one."""
        return TL_TYPES.get(self.gate_dtype or "", "")

    @property
    def short(self) -> bool:
        """Whether the gate has 16 bits."""
        return self.gate_dtype in SHORT

    @property
    def functions(self) -> tuple[str, ...]:
        """What the gate needs of `_math.py.jinja`."""
        return functions(["fl_sigmoid"]) if self.gate_dtype else ()

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Sum of {self.top} rows of {self.out} {self.dtype} for each token"


__all__ = ["ExpertsProductKernel", "ExpertsSortKernel", "ExpertsSumKernel", "Find", "stops_at"]
