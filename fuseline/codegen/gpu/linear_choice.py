"""Which kernel does a linear product on a GPU, and with which blocking, for which token counts.

Nothing here was measured; these are the reasons, to be held against a device.

* Few tokens cost the reading of the weights, so bytes must be in flight: by Little's law 20 KiB a
  multiprocessor for an H100 (3.35 TB/s and 0.8 us over 132 of them), and twice that is asked for.
* One or two rows of narrow weights: products by FMA on the weights as they come into registers.
  With four weight rows a block, each thread has 64 bytes on the way, and needs 64 to 96 registers:
  five to eight blocks of 128 threads, 40 to 64 KiB. More rows would be bound by conversions and
  additions (7 elements a cycle come in, for 128 lanes): those go to tensor cores.
* float32 weights come half as fast in elements: up to eight rows by FMA.
* Up to 16 rows: tiles of 32 weight rows (64 where there are blocks enough, 16 where too few) by 16
  rows of x. A tile of x is read for each block, so tiles of weights should not be smaller than it.
* From there on torch's library. It has no product of narrow operands in float32: ours throughout.
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
"""Tiles that do for a device where each has several steps in flight; K is shared out with fewer."""

MOST_ROWS = 16
"""Rows of x up to which the weights are streamed by our kernels; more are the library's."""

WIDE_ROWS = 512
"""Rows up to which a product in float32 uses small tiles, and shares out K."""

STEPS = {16: (256, 6), 32: (128, 6), 64: (128, 5)}
"""Elements of K in a step, and stages, by weight rows of a tile. The kernel waits for a step with
``stages - 2`` behind it under way: 32 KiB of weights a block, 48 in the widest, while x, 16 rows of
it, and ``stages - 1`` steps take 60 to 80 KiB of shared memory, which every target has."""

SHARED_FROM = {16: 6144, 64: 2048}
"""Elements of K from which on it may be shared out, by rows of a tile: what is saved must be more
than the second kernel costs, a microsecond or two; a processor reads 16 narrow weight rows of 3072
in about one, and computes 64 rows of 1024 in as much."""

SHARE = {16: 1024, 64: 512}
"""Elements of K that a part has then, at least."""

IN_FLIGHT = 132 * 32 * 1024
"""Bytes of weights that all first steps of a product of few rows should ask for."""


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


def choose_linear(
    shape: Shape, low: int = 1, high: int | None = None, *, invariant: bool = False
) -> list[Choice]:
    """The kernels of one product, for disjoint ranges that cover ``low`` to ``high`` tokens;
    ``invariant``: the same for all numbers of tokens.
    """
    if invariant:
        return [Choice(1, None, tuple(_tile_kernels(shape, None)))]
    low = max(low, 1)
    return list(_within(_ranges(shape), low, None if high is None else max(high, low)))


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
    columns = max(1, (4 if most <= 4 else 2) // shape.halves)
    while columns > 1 and -(-shape.n // columns) < BLOCKS:
        columns //= 2
    warps = 4
    while warps > 1 and warps * 32 * vector > shape.k:
        warps //= 2
    first = -(-shape.n // columns) * columns * shape.halves * 32 * VECTOR_BYTES
    while 4 <= warps < 16 and warps * first < IN_FLIGHT and 2 * warps * 32 * vector <= shape.k:
        warps *= 2
    made = LinearRowsKernel(
        **_shared(shape),
        block_n=columns,
        block_m=most,
        block_k=warps * 32 * vector,
        least=least,
        warps=warps,
    )
    yield made
    for other in (2 * warps, warps // 2):
        if 2 <= other <= 16 and other * 32 * vector <= shape.k:
            yield replace(made, warps=other, block_k=other * 32 * vector)
    if -(-shape.n // (2 * columns)) >= BLOCKS:
        yield replace(made, block_n=2 * columns)


def _tile_kernels(shape: Shape, rows: int | None) -> Iterator[LinearTileKernel]:
    """Tiles for up to so many rows, the likelier first."""
    columns, block_k, stages, warps = (
        _few_tile(shape) if rows == MOST_ROWS else _many_tile(shape, rows)
    )
    block_m = 16 if rows == MOST_ROWS else 64
    while block_k > 32 and block_k >= 2 * shape.k:
        block_k //= 2
    made = LinearTileKernel(
        **_shared(shape),
        block_n=columns,
        block_m=block_m,
        block_k=block_k,
        columns=shape.columns,
        splits=1 if rows is None else _splits(shape.k, -(-shape.n // columns), block_m),
        warps=warps,
        stages=stages,
    )
    yield made
    yield replace(made, stages=stages + 1)
    yield replace(made, warps=2 * warps)  # each thread holds half as much
    if not shape.narrow:
        yield replace(made, block_k=32)


def _few_tile(shape: Shape) -> tuple[int, int, int, int]:
    """Columns, elements of K, stages and warps of tiles of up to `MOST_ROWS` rows."""
    if not shape.narrow:  # parts of the operands take registers
        return 16, 64, 5, 1
    together = next((c for c in (64, 32) if shape.halves * -(-shape.n // c) >= TILES), 16)
    columns = max(16, together // shape.halves)
    block_k, stages = STEPS[columns * shape.halves]
    return columns, block_k, stages, 2 if columns * shape.halves == 16 else 4


def _many_tile(shape: Shape, rows: int | None) -> tuple[int, int, int, int]:
    """The same for more rows: small tiles for up to `WIDE_ROWS`."""
    if rows:
        return 32, 64, 4, 4
    return (64, 64, 3, 8) if shape.narrow else (64, 32, 3, 4)


def _splits(k: int, tiles: int, rows: int) -> int:
    """Parts of K: enough for the device, where that is worth a second kernel."""
    parts = 1
    while k >= SHARED_FROM[rows] and parts * tiles < TILES and k >= 2 * parts * SHARE[rows]:
        parts *= 2
    return parts


__all__ = ["MOST_ROWS", "Choice", "Shape", "choose_linear"]
