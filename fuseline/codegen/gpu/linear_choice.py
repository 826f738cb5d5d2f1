"""Which kernel does a linear product on a GPU, and with which blocking, for which token counts.

Nothing here was measured; these are the reasons, to be held against a device.

* Few tokens cost the reading of the weights, so bytes must be in flight: by Little's law 20 KiB a
  multiprocessor for an H100 (3.35 TB/s and 0.8 us over 132 of them), and twice that is asked for.
* One or two rows of narrow weights: products by FMA on the weights as they come into registers. Four
  weight rows a block and one step ahead are 64 to 128 bytes in flight a thread, at 64 registers:
  eight blocks of 128 threads, 64 KiB or more. Three rows and more would be bound by conversions and
  additions (7 of 16 bits a cycle come in, and 128 lanes do one thing each): tensor cores.
* float32 weights come half as fast in elements: up to eight rows by FMA.
* Up to 16 rows: tiles of 32 weight rows (64 where there are blocks enough, 16 where too few) by 16
  rows of x. A tile of x is read for each block, so tiles of weights should not be smaller than it.
* From there on torch's library. It has no product of narrow operands in float32, so those stay ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fuseline.codegen.gpu.linear import (
    SIZES,
    VECTOR_BYTES,
    LinearKernel,
    LinearRowsKernel,
    LinearTileKernel,
)
from fuseline.ir.ops.raised import Activation

BLOCKS = 256
"""Blocks that a product of few rows should have: about two for each multiprocessor."""

TILES = 128
"""Tiles that do for a device where each has several steps in flight; with fewer, K is shared out."""

MOST_ROWS = 16
"""Rows of x up to which the weights are streamed by our kernels; beyond, the library does better."""

WIDE_ROWS = 512
"""Rows up to which a product in float32 uses small tiles, and shares out K."""

STEP_BYTES = 16384
"""Bytes of weights that a step of a tile takes: with four stages two to three are in flight, and
x and three steps fit in what a block of the smallest target may have."""

DEPTH = {16: 3072, 64: 1024}
"""Elements of K that a part has at least, by rows of a tile: what is saved must be more than the
second kernel costs, a microsecond or two; a processor reads 3072 x 16 narrow weights in about one."""


@dataclass(frozen=True)
class Shape:
    """A product to choose for; attributes as in `Product`, types by name."""

    k: int
    outputs: tuple[int, ...]
    dtype: str
    x_dtype: str
    weight_dtype: str
    bias: str | None = None
    activation: Activation | None = None
    residual: bool = False
    columns: bool = False

    @property
    def n(self) -> int:
        """Columns of all results."""
        return sum(self.outputs)

    @property
    def halves(self) -> int:
        """Weight rows for each column."""
        return 1 if self.activation is None else 2

    @property
    def narrow(self) -> bool:
        """Whether tensor cores multiply the operands as they are."""
        return self.x_dtype == self.weight_dtype != "f32"

    @property
    def library(self) -> bool:
        """Whether torch's library has this product."""
        return self.x_dtype == self.weight_dtype == self.dtype


class Choice(NamedTuple):
    """The kernels for token counts from ``first`` to ``last`` (``None``: all from there on).

    The likelier configuration comes first; none means the library.
    """

    first: int
    last: int | None
    kernels: tuple[LinearKernel, ...]


def choose_linear(shape: Shape, low: int = 1, high: int | None = None) -> list[Choice]:
    """The kernels of one product, for disjoint ranges that cover ``low`` to ``high`` tokens."""
    return list(_within(_ranges(shape), max(low, 1), high))


def _within(choices: Iterator[Choice], low: int, high: int | None) -> Iterator[Choice]:
    """The parts of ranges that lie in ``low`` to ``high``."""
    for first, last, kernels in choices:
        begin = max(first, low)
        end = high if last is None else last if high is None else min(last, high)
        if end is None or begin <= end:
            yield Choice(begin, end, kernels)


def _ranges(shape: Shape) -> Iterator[Choice]:
    """Every number of tokens and its kernels."""
    behind = 0
    if not shape.columns:
        rows = (1, 2) if shape.narrow else (1, 2, 4, 8)
        for most in rows:
            yield Choice(behind + 1, most, tuple(_rows_kernels(shape, behind + 1, most)))
            behind = most
    if shape.narrow or not shape.library:
        yield Choice(behind + 1, MOST_ROWS, tuple(_tile_kernels(shape, MOST_ROWS)))
        behind = MOST_ROWS
    if shape.library:
        yield Choice(behind + 1, None, ())
        return
    yield Choice(behind + 1, WIDE_ROWS, tuple(_tile_kernels(shape, WIDE_ROWS)))
    yield Choice(WIDE_ROWS + 1, None, tuple(_tile_kernels(shape, None)))


def _shared(shape: Shape) -> dict[str, Any]:
    """The fields that do not depend on the blocking."""
    return {
        "k": shape.k,
        "outputs": shape.outputs,
        "dtype": shape.dtype,
        "x_dtype": shape.x_dtype,
        "weight_dtype": shape.weight_dtype,
        "bias": shape.bias,
        "activation": shape.activation,
        "residual": shape.residual,
    }


def _rows_kernels(shape: Shape, least: int, most: int) -> Iterator[LinearRowsKernel]:
    """The first with four weight rows a block, then with other numbers of rows and warps."""
    vector = VECTOR_BYTES // SIZES[shape.weight_dtype]
    warps = 4
    while warps > 1 and warps * 32 * vector > shape.k:
        warps //= 2
    columns = 4 // shape.halves
    while columns > 1 and -(-shape.n // columns) < BLOCKS:
        columns //= 2
    made = LinearRowsKernel(
        **_shared(shape),
        block_n=columns,
        block_m=most,
        block_k=warps * 32 * vector,
        least=least,
        warps=warps,
    )
    yield made
    if warps == 4:
        yield replace(made, warps=8, block_k=8 * 32 * vector)
        yield replace(made, warps=2, block_k=2 * 32 * vector)
    if -(-shape.n // (2 * columns)) >= BLOCKS:
        yield replace(made, block_n=2 * columns)


def _tile_kernels(shape: Shape, rows: int | None) -> Iterator[LinearTileKernel]:
    """Tiles for up to so many rows, the likelier first."""
    size = max(SIZES[shape.weight_dtype], SIZES[shape.x_dtype])
    if rows == MOST_ROWS:
        columns = next((c for c in (64, 32) if -(-shape.n // c) >= TILES), 16)
        columns = max(16, columns // shape.halves)
        tiles = -(-shape.n // columns)
        block_k, block_m = min(256, STEP_BYTES // (size * columns * shape.halves)), 16
    else:
        columns, block_m, block_k = (32, 64, 64) if rows else (64, 64, 64)
        tiles = -(-shape.n // columns)
    if not shape.narrow:  # by FMA, which keeps a row of each operand in registers
        block_k = 32
    while block_k > 32 and block_k >= 2 * shape.k:
        block_k //= 2
    made = LinearTileKernel(
        **_shared(shape),
        block_n=columns,
        block_m=block_m,
        block_k=block_k,
        columns=shape.columns,
        splits=1 if rows is None else _splits(shape.k, tiles, DEPTH[block_m]),
        warps=4 if columns > 16 or block_m > 16 else 2,
        stages=4,
    )
    yield made
    yield replace(made, stages=3)


def _splits(k: int, tiles: int, depth: int) -> int:
    """Parts of K: enough for the device, and none shorter than ``depth``."""
    parts = 1
    while parts * tiles < TILES and k >= 2 * parts * depth:
        parts *= 2
    return parts


__all__ = ["Choice", "Shape", "choose_linear"]
