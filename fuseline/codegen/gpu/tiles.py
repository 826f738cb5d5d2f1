"""How the blocks of a kernel share rows of elements: tiles, grids, and for which sizes.

Blocks are as small as 16 bytes a thread allow while there is less than a block for each
multiprocessor of the largest cards, so that a decode step is spread over all of them. They are
numbered along the grid's first axis, which takes 2^31 - 1 of them; the others end at 65535.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.forms import When
from fuseline.codegen.gpu.kernel import ceil_div, next_power_of_two
from fuseline.codegen.gpu.pointwise import Tile
from fuseline.ir.types import Dim, dim, product

WARPS = 4
"""Of a block where there is work for many."""

FEW_BLOCKS = 256
"""Where there are no more blocks of `WARPS` warps than this, blocks have one warp each."""

FEW_ROWS = 512
"""Up to so many rows, each has a block of its own in a reduction."""

WIDEST = 16384
"""Elements of a row that a block holds in registers; longer ones are walked in a loop."""

STEP = 2048
"""Elements of a longer row that a block takes at a time."""

SIDE = 64
"""Rows and elements of a tile that is read along the one and written along the other."""


@dataclass(frozen=True)
class Choice:
    """A tile, the warps of its block (the likelier number first), its grid, and for which sizes."""

    tile: Tile
    warps: tuple[int, ...]
    grid: tuple[Dim, ...]
    when: When = None


def element_tiles(outer: Sequence[Dim], inner: Dim, per_thread: int) -> list[Choice]:
    """Tiles for elements that do not depend on each other.

    Args:
        outer: extents of the axes around the row.
        inner: elements of a row.
        per_thread: how many of them a thread takes at once.

    """
    large, small = 32 * WARPS * per_thread, 32 * per_thread
    if outer and not isinstance(inner, int):
        return [
            _elements(outer, inner, (large // small, small), WARPS, (inner, 0, small)),
            _elements(outer, inner, (1, large), WARPS, (inner, small + 1, None)),
        ]
    most = FEW_BLOCKS * large
    total = product([*outer, inner])
    blocks = [
        ((max(1, size // width), width), warps)
        for size, warps in ((small, 1), (large, WARPS))
        for width in [min(size, next_power_of_two(inner)) if isinstance(inner, int) else size]
    ]
    if isinstance(total, int):
        return [_elements(outer, inner, *blocks[total > most])]
    return [
        _elements(outer, inner, *blocks[0], (total, 0, most)),
        _elements(outer, inner, *blocks[1], (total, most + 1, None)),
    ]


def _elements(
    outer: Sequence[Dim], inner: Dim, block: tuple[int, int], warps: int, when: When = None
) -> Choice:
    """A tile, with more warps for a region of which a thread cannot hold so many elements."""
    rows, width = block
    along, threads = ceil_div(inner, width), (warps, 2 * warps, 4 * warps)
    if not outer:
        return Choice(Tile(1, width, "none", whole=False), threads, (along,), when)
    tile = Tile(rows, width, "flat", whole=isinstance(along, int) and along == 1)
    return Choice(tile, threads, (dim(ceil_div(product(outer), rows) * along),), when)


def one_tile(outer: Sequence[Dim], inner: Dim, per_thread: int, *, many: bool) -> Choice:
    """The tile for many rows, or that for a few, whatever their number will be."""
    warps = WARPS if many else 1
    size = 32 * warps * per_thread
    width = min(size, next_power_of_two(inner)) if isinstance(inner, int) else size
    return _elements(outer, inner, (max(1, size // width), width), warps)


def square_tiles(outer: Sequence[Dim], inner: Dim) -> list[Choice]:
    """Tiles for what lies side by side along the last outer axis in one place, along the row in
    another.
    """
    last = outer[-1]
    rows, width = (
        min(SIDE, next_power_of_two(e)) if isinstance(e, int) else SIDE for e in (last, inner)
    )
    tile = Tile(rows, width, "tiled", whole=isinstance(inner, int) and width >= inner)
    warps = max(1, min(8, rows * width // (32 * 8)))
    blocks = product([*outer[:-1], ceil_div(last, rows), ceil_div(inner, width)])
    return [Choice(tile, (warps,), (blocks,))]


def row_tiles(
    outer: Sequence[Dim], inner: Dim, *, across: bool, steady: bool = False
) -> list[Choice]:
    """Tiles for reductions along the rows.

    Args:
        outer: extents of the axes around the row.
        inner: elements of a row.
        across: whether elements of neighbouring rows lie side by side, those of a row apart.
        steady: whether there is to be one tile, however many rows there are.

    """
    if steady and not across:
        return [
            _rows(
                outer,
                inner,
                1,
                next_power_of_two(inner) if isinstance(inner, int) and inner <= WIDEST else STEP,
            )
        ]
    if across:
        width = next_power_of_two(inner) if isinstance(inner, int) else SIDE
        return [_rows(outer, inner, SIDE, min(width, SIDE // 2))]
    if not isinstance(inner, int):
        return [
            _rows(outer, inner, 1, 1024, (inner, 0, 1024)),
            _rows(outer, inner, 1, STEP, (inner, 1025, None)),
        ]
    if inner > WIDEST:
        return [_rows(outer, inner, 1, STEP)]
    width = next_power_of_two(inner)
    several = max(1, 2048 // width)
    rows = product(outer)
    if not outer or several == 1:
        return [_rows(outer, inner, 1, width)]
    if isinstance(rows, int):
        return [_rows(outer, inner, several if rows > FEW_ROWS else 1, width)]
    return [
        _rows(outer, inner, 1, width, (rows, 0, FEW_ROWS)),
        _rows(outer, inner, several, width, (rows, FEW_ROWS + 1, None)),
    ]


def _rows(outer: Sequence[Dim], inner: Dim, rows: int, width: int, when: When = None) -> Choice:
    known = isinstance(inner, int) and inner <= width
    whole = known or (when is not None and when[0] is inner and when[2] is not None)
    tile = Tile(rows, width, "flat" if outer else "none", whole, looped=not whole)
    warps = tuple(
        dict.fromkeys(min(16, max(1, rows * width // (32 * each))) for each in (8, 4, 16))
    )
    return Choice(tile, warps, (ceil_div(product(outer), rows),), when)


__all__ = ["Choice", "element_tiles", "one_tile", "row_tiles", "square_tiles"]
