"""How adapters find their rows and how large their blocks are, by the number of rows.

Chosen by counting, not measured:

* Rows are found as those of experts are (`experts_choice`): one row by itself, up to 128 by looking
  through all of them, more from a sorted list; blocks have 1, 16 or 64 rows.
* A is a few rows of K: there are too few blocks to keep the memory busy unless K is shared out.
  A part is 512 to 1024 elements of a row; the parts lie in scratch in float32 and are added, in
  order, by the second product, each block of which reads all of its rows'.
* B is many rows of r: blocks have 2048 elements of it for one row (two loads of 16 bytes to a
  thread in a 16-bit type), and tiles of 64 or 128 columns for more.
"""

from __future__ import annotations

from typing import NamedTuple

from fuseline.codegen.gpu.experts_choice import Range, choose_ranges
from fuseline.codegen.gpu.kernel import next_power_of_two

PART = 512
"""Elements of K in a part, at least."""

MOST_PARTS = 8
"""Parts of K, at most."""

FEW_ROWS = 1024
"""Rows up to which K is shared out."""


class Tile(NamedTuple):
    """The sizes of a block, and how it runs."""

    block_n: int
    block_k: int
    warps: int
    stages: int


def adapter_ranges(*, count: int, least: int = 0, most: int | None = None) -> list[Range]:
    """How rows find their adapters, by how many there are."""
    found: list[Range] = []
    for r in choose_ranges(experts=count, top=1, least=least, most=most):
        r = r._replace(block_m=min(r.block_m, 64))
        if found and found[-1][2:] == r[2:]:
            r, _ = r._replace(first=found[-1].first), found.pop()
        found.append(r)
    return [part for r in found for part in _cut(r)]


def _cut(r: Range) -> list[Range]:
    """A range, cut where K is no longer shared out."""
    if r.first > FEW_ROWS or (r.last is not None and r.last <= FEW_ROWS):
        return [r]
    return [r._replace(last=FEW_ROWS), r._replace(first=FEW_ROWS + 1)]


def parts_of(depth: int, rows: int | None) -> int:
    """Parts of K for up to so many rows; None: any number."""
    if rows is None or rows > FEW_ROWS:
        return 1
    return max(1, min(MOST_PARTS, depth // PART))


def low_tiles(block_m: int, *, rank: int, depth: int, size: int) -> list[Tile]:
    """Sizes for the first product, the likelier first; ``size``: bytes of an element."""
    columns, deep = next_power_of_two(rank), next_power_of_two(depth)
    if block_m == 1:
        shapes = [(4096, 4), (2048, 4), (1024, 2)]
        found: list[Tile] = []
        for elements, warps in shapes:
            step = min(512, deep)
            found.append(Tile(max(1, min(columns, elements // step)), step, warps, 2))
        return list(dict.fromkeys(found))
    step = max(16, min(256 // size, deep))
    widest = max(16, columns)
    plain = size == 4 and block_m == 64  # no tensor cores: operands lie in registers
    shapes = [(32, 4, 3), (16, 4, 2)] if plain else [(64, 4, 3), (32, 4, 3), (32, 4, 2)]
    step = max(16, step // 2) if plain else step
    return list(dict.fromkeys(Tile(min(n, widest), step, w, s) for n, w, s in shapes))


def high_tiles(block_m: int, *, rank: int, width: int, size: int) -> list[Tile]:
    """The same for the second product."""
    deep, columns = next_power_of_two(rank), next_power_of_two(width)
    if block_m == 1:
        found = [
            Tile(max(1, min(columns, elements // deep)), deep, warps, 2)
            for elements, warps in ((2048, 4), (4096, 4), (2048, 2))
        ]
        return list(dict.fromkeys(found))
    step = max(16, min(128 // size, deep))
    widest = max(16, columns)
    shapes = [(64, 4, 2), (32, 4, 2)] if size == 4 else [(128, 4, 2), (64, 4, 2), (64, 4, 3)]
    return list(dict.fromkeys(Tile(min(n, widest), step, w, s) for n, w, s in shapes))


__all__ = ["Tile", "adapter_ranges", "high_tiles", "low_tiles", "parts_of"]
