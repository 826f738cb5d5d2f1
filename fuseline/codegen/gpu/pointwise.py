"""Element-wise regions in Triton: chains of element-wise ops, reductions over the inner axis.

A block takes a tile of the collapsed iteration space: R rows by N elements of the inner axis. What
follows only rows or only the inner axis has the other extent 1, and is read once for the tile. A
reduction needs whole rows: a tile is as wide as they are, or walks along them in a loop for each
reduction and one for the stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fuseline.codegen.gpu.kernel import TritonKernel

Rows = Literal["none", "flat", "tiled"]


@dataclass(frozen=True)
class Tile:
    """How blocks share a space of rows by ``n`` elements.

    Attributes:
        block_rows: R, a power of two.
        block: N, a power of two.
        rows: ``none`` where there is one row; ``flat`` where all axes around the row are numbered
            as one; ``tiled`` where R runs along the last of them only.
        whole: N is at least the row.
        looped: a block walks along the rows.

    """

    block_rows: int
    block: int
    rows: Rows = "flat"
    whole: bool = True
    looped: bool = False


@dataclass(frozen=True)
class Loop:
    """One walk along the rows of a tile: a reduction, or the last one, which stores.

    ``before`` are statements of the rows (and what a reduction sets up), ``body`` those of a tile,
    ``after`` what is made of the reduction.
    """

    before: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointwiseKernel(TritonKernel, template="triton/pointwise.py.jinja"):
    """A region of element-wise ops over a tile of rows.

    Numerics: each op rounds to the type of its result, as in eager; sums are accumulated in float32
    (f64 in float64, integers in int64). Any extent may be 0.

    Attributes:
        title: the ops.
        pointers: name and element type of each buffer: operands, then results.
        numbers: name and type of each integer: extents and strides that are known at run time only.
        tile: how blocks share the space.
        start: the statements that tell where a block is.
        columns: those that tell where a tile is along the rows.
        extent: of the rows.
        loops: the statements of the region.
        last: those behind the loops.
        functions: what is called of `_math.py.jinja`.

    """

    varies = ""
    per_element = True

    title: str
    pointers: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, str], ...]
    tile: Tile
    start: tuple[str, ...]
    columns: tuple[str, ...]
    extent: str
    loops: tuple[Loop, ...]
    last: tuple[str, ...]
    functions: tuple[str, ...]

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        return self.pointers

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return self.numbers


__all__ = ["Loop", "PointwiseKernel", "Rows", "Tile"]
