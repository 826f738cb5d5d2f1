"""Attention in Triton: blocks of query rows walk the keys that they see, with an online softmax.

The rows of a key head are its queries times the query heads that share it, head by head within a
query, so that a key is read once for all of them. Where rows are few, the keys of a block of rows
are cut over several blocks (flash decoding); each leaves its largest score, its sum of exponentials
and its sums of values in scratch, and a second kernel joins them, always in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fuseline.codegen.gpu.kernel import TL_TYPES, TritonKernel, next_power_of_two, strides
from fuseline.codegen.gpu.scalar import functions

NARROWEST = 16
"""The least extent that a tensor core multiplies along any axis."""

LEAST_KEYS = 64
"""Fewer keys than this are not worth a block of their own."""

COMBINED = 128
"""Most columns of a row that one block joins: wide rows, those of a latent, are shared out."""


@dataclass(frozen=True)
class Part:
    """Some columns of the keys: ``width`` of ``k`` from ``k_start``, met by as many of ``q``."""

    width: int
    q: str = "q"
    k: str = "k"
    q_start: int = 0
    k_start: int = 0

    @property
    def block(self) -> int:
        """The power of two that holds the columns."""
        return max(NARROWEST, next_power_of_two(self.width))

    @property
    def masked(self) -> bool:
        """Whether a block is wider than the columns."""
        return self.block != self.width


def columns(width: int, q: str, k: str, q_start: int = 0, k_start: int = 0) -> tuple[Part, ...]:
    """Columns as blocks of powers of two: as one, or as two where that saves a quarter or more.

    80 are 64 and 16, 192 are 128 and 64; 112 stay one block of 128.
    """
    whole = Part(width, q, k, q_start, k_start)
    first = whole.block // 2
    if width <= first:
        return (whole,)
    rest = Part(width - first, q, k, q_start + first, k_start + first)
    if first + rest.block > whole.block * 3 // 4:
        return (whole,)
    return Part(first, q, k, q_start, k_start), rest


@dataclass(frozen=True, kw_only=True)
class AttentionKernel(TritonKernel, template="triton/attention.py.jinja"):
    """Attention of ``groups`` key heads, each with ``group`` query heads.

    The parts of the keys lie side by side in a head, and so do those of the values (``values``,
    of which ``q_start`` is the column of y); with ``latent`` they are the first parts of the keys,
    and are read once. Queries, keys, values and y are ``[B, heads, S, width]`` of ``dtype``, by
    strides of batch, head and token. The mask is ``"bool"``, or the dtype of what is added;
    positions are ``i64[B, Sq]`` (``positions_b`` may be 0) and default to 0, 1, ...; sinks are
    ``[H]``. ``views`` names what lies in scratch, of operands and y, ``<name>_at`` bytes behind its
    begin. With ``later`` the first query head is the argument ``first``. Exponentials meet 16-bit
    values as a sum of ``terms`` (1 or 2) numbers of their type.

    With ``split`` the second axis of the grid cuts the keys, and the results are partial: ``sums``
    (float32, ``partial_row`` apart) and ``tops`` (largest scores, then sums of exponentials), rows
    numbered (batch, key head, query, head of the group). With ``few`` there is one loop over keys.
    With ``steady`` blocks of keys begin at multiples of their length, whatever the rows see.
    """

    dtype: str
    groups: int
    group: int
    keys: tuple[Part, ...]
    values: tuple[Part, ...]
    scale: float
    latent: bool = False
    causal: bool = False
    positions: bool = False
    window: int | None = None
    softcap: float | None = None
    mask: str | None = None
    sinks: str | None = None
    split: bool = False
    terms: int = 1
    later: bool = False
    few: bool = False
    steady: bool = False
    views: tuple[str, ...] = ()
    block_rows: int = 16
    block_keys: int = 64

    def why_varies(self) -> str:
        """Steady ones that are not split go through the keys in one order."""
        if self.steady and not self.split:
            return ""
        return "its keys are cut over as many blocks as fill the device"

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of what is read by strides, each once."""
        names = [name for part in self.keys for name in (part.q, part.k)]
        return tuple(dict.fromkeys([*names, *(part.k for part in self.values)]))

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        found = [(name, self.dtype) for name in self.operands if name not in self.views]
        found += [("mask", self.mask)] if self.mask else []
        found += [("positions", "i64")] * self.positions
        found += [("sinks", self.sinks)] if self.sinks else []
        found += [("y", self.dtype)] * (not self.split and "y" not in self.views)
        return (*found, *[("scratch", "u8")] * self.scratch)

    @property
    def scratch(self) -> bool:
        """Whether anything lies in scratch."""
        return self.split or bool(self.views)

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        found = [("Sq", "i32"), ("Sk", "i32"), *[("splits", "i32")] * self.split]
        found += [("first", "i32")] * self.later
        found += strides(*self.operands, axes="bhs")
        found += strides("y", axes="bhs") if not self.split else ()
        found += strides("mask", axes="bhqk") if self.mask else ()
        found += strides("positions", axes="b") if self.positions else ()
        found += [(f"{name}_at", "i64") for name in self.views]
        return (*found, *[("sums_at", "i64"), ("tops_at", "i64")] * self.split)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        group = f"{self.group} query heads a key head" if self.group > 1 else "equal heads"
        traits = ["causal"] * self.causal
        traits += [f"window {self.window}"] * (self.window is not None)
        traits += [f"cap {self.softcap}"] * (self.softcap is not None)
        traits += ["keys cut"] * self.split
        widths = f"heads of {self.width} and {self.value_width}"
        return ", ".join([f"Attention, {group}", widths, *traits, self.dtype])

    @property
    def width(self) -> int:
        """Columns of a key."""
        return sum(part.width for part in self.keys)

    @property
    def value_width(self) -> int:
        """Columns of a value."""
        return sum(part.width for part in self.values)

    @property
    def partial_row(self) -> int:
        """Floats from one row of partial sums to the next: whole accesses of 16 bytes."""
        return partial_row(self.value_width)

    @property
    def type(self) -> str:
        """The type of q, k, v and y."""
        return TL_TYPES[self.dtype]

    @property
    def ranged(self) -> bool:
        """Whether positions say which keys a query sees."""
        return self.causal or self.window is not None

    @property
    def checked(self) -> bool:
        """Whether one loop checks all blocks of keys for those that a row does not see.

        Else a loop of its own takes those that all rows see. Few rows are bound by memory, and a
        second loop would only cost registers.
        """
        return self.few or self.mask is not None or self.window is not None

    @property
    def base_two(self) -> bool:
        """Whether scores are logarithms to base 2, which saves a product for each of them.

        Not with a mask that is added: the largest finite numbers would become infinite.
        """
        return self.mask in (None, "bool")

    @property
    def exp(self) -> str:
        """The function that undoes the logarithm."""
        return "tl.exp2" if self.base_two else "tl.exp"

    @property
    def unit(self) -> float:
        """What turns a natural logarithm into a score."""
        return math.log2(math.e) if self.base_two else 1.0

    @property
    def score_scale(self) -> str:
        """What the products of queries and keys are multiplied by: before a cap, relative to it."""
        return repr(self.scale / self.softcap if self.softcap else self.scale * self.unit)

    @property
    def cap(self) -> str:
        """What a capped score between -1 and 1 is multiplied by."""
        return repr((self.softcap or 0.0) * self.unit)

    @property
    def functions(self) -> tuple[str, ...]:
        """What a cap needs of `_math.py.jinja`; it levels what the hardware's exponential lacks."""
        return functions(["fl_tanh"]) if self.softcap else ()

    @property
    def exact(self) -> bool:
        """Whether what an exponential loses by rounding is a second term."""
        return self.terms > 1 and self.dtype != "f32"

    @property
    def least_keys(self) -> int:
        """Keys of a split, at least: whole blocks."""
        return max(self.block_keys, LEAST_KEYS)


@dataclass(frozen=True, kw_only=True)
class CombineKernel(TritonKernel, template="triton/attention_combine.py.jinja"):
    """Joins what the splits of an attention left of a row, and writes it to y, or into scratch.

    ``exp`` is that of the attention; rows are numbered as there. A block has some columns only.
    """

    varies = "its parts are as many as fill the device"

    dtype: str
    groups: int
    group: int
    value_width: int
    exp: str
    viewed: bool = False
    block_rows: int = 1

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return (("scratch", "u8"), *[("y", self.dtype)] * (not self.viewed))

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        found = (("rows", "i64"), ("Sq", "i32"), ("splits", "i32"), *strides("y", axes="bhs"))
        found += (("sums_at", "i64"), ("tops_at", "i64"))
        return (*found, *[("y_at", "i64")] * self.viewed)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Join the parts of attention rows of {self.value_width} {self.dtype}"

    @property
    def block(self) -> int:
        """Columns of a block."""
        return min(COMBINED, next_power_of_two(self.value_width))

    @property
    def column_blocks(self) -> int:
        """Blocks that share a row."""
        return -(-self.value_width // self.block)

    @property
    def masked(self) -> bool:
        """Whether a row ends within a block."""
        return self.value_width % self.block != 0

    @property
    def block_splits(self) -> int:
        """Parts that are read at once."""
        return max(1, min(16, 2048 // (self.block * self.block_rows)))

    @property
    def partial_row(self) -> int:
        """Floats from one row of partial sums to the next."""
        return partial_row(self.value_width)

    @property
    def type(self) -> str:
        """The type of y."""
        return TL_TYPES[self.dtype]


def partial_row(value_width: int) -> int:
    """Floats from one row of partial sums to the next: whole accesses of 16 bytes."""
    return -(-value_width // 4) * 4
