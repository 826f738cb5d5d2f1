"""Where a block of a tile is: the statements, and the integers that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fuseline.codegen.gpu.kernel import ceil_div
from fuseline.codegen.gpu.pointwise import Tile
from fuseline.ir.types import Dim, product, same


@dataclass
class Places:
    """A tile over rows (of which the extents are ``outer``) of ``inner`` elements.

    Statements name ``row_R`` (the number of a row, ``[R, 1]``), ``i0``, ``i1``, ... (its index
    along each axis, in 64 bits) and ``col_N`` (``[1, N]``), and ``row_ok`` and ``col_ok`` where
    a block may reach beyond the end. ``values`` are the run-time integers by name.
    """

    tile: Tile
    outer: Sequence[Dim]
    inner: Dim
    values: dict[str, Dim] = field(default_factory=dict[str, Dim])
    types: dict[str, str] = field(default_factory=dict[str, str])
    steady: bool = False

    def number(self, name: str, value: Dim, kind: str = "i64") -> str:
        """An integer as text: itself where it is known, else the name of an argument."""
        if isinstance(value, int) and not self.steady:
            return str(value)
        for given, other in self.values.items():
            if same(other, value) and self.types[given] == kind:
                return given
        self.values[name], self.types[name] = value, kind
        return name

    def times(self, index: str, name: str, stride: Dim) -> str:
        """An index times a stride; empty where that is 0."""
        if stride == 0:
            return ""
        return index if stride == 1 else f"{index} * {self.number(name, stride)}"

    @property
    def extent(self) -> str:
        """The elements of a row; in 32 bits where blocks count so: a launch of more is refused."""
        wide = self.tile.rows == "none" or self.tile.looped
        return self.number("n", self.inner, "i64" if wide else "i32")

    @property
    def rows(self) -> Dim:
        """What ``row_R`` counts up to."""
        return self.outer[-1] if self.tile.rows == "tiled" else product(self.outer)

    @property
    def row_mask(self) -> bool:
        """Whether a block may have rows behind the last one."""
        rows, each = self.rows, self.tile.block_rows
        return each > 1 and (not isinstance(rows, int) or rows % each != 0)

    @property
    def column_mask(self) -> bool:
        """Whether a block may have elements behind the end of a row."""
        inner = self.inner
        return not isinstance(inner, int) or inner == 0 or inner % self.tile.block != 0

    def mask(self, *, rows: bool = True, columns: bool = True) -> str:
        """The mask of what moves by row or along it; empty where none is needed."""
        words = ["row_ok"] * (rows and self.row_mask) + ["col_ok"] * (columns and self.column_mask)
        return " & ".join(words)

    def start(self) -> list[str]:
        """Where the rows of a block are, and where its first element is."""
        lines = self._start()
        if self.row_mask:
            lines.append(f"row_ok = row_R < {self.number('rows', self.rows, 'i32')}")
        return lines

    def _start(self) -> list[str]:
        tile, depth = self.tile, len(self.outer)
        lanes = f"tl.arange(0, {tile.block_rows})"
        if tile.rows == "none":
            wide = ".to(tl.int64)" if self._is_wide() else ""
            moves = not tile.whole and not tile.looped
            return [f"col0 = tl.program_id(0){wide} * {tile.block}"] if moves else []
        place = self._along() if not tile.whole and not tile.looped else ["row0 = tl.program_id(0)"]
        if tile.rows == "tiled":
            down = self.number("down", ceil_div(self.rows, tile.block_rows), "i32")
            lines = [
                *place,
                f"unit = row0 // {down}",
                f"row_R = (row0 % {down} * {tile.block_rows} + {lanes})[:, None]",
                f"i{depth - 1} = row_R.to(tl.int64)",
            ]
            return lines + self._split("unit", depth - 1)
        first = "row0" if tile.block_rows == 1 else f"row0 * {tile.block_rows}"
        lines = [*place, f"row_R = ({first} + {lanes})[:, None]"]
        return lines + self._split("row_R", depth)

    def _along(self) -> list[str]:
        """The place of a block where several share a row: those of one row follow one another."""
        along = self.number("along", ceil_div(self.inner, self.tile.block), "i32")
        wide = ".to(tl.int64)" if isinstance(self.inner, int) and self._is_wide() else ""
        return [
            "place = tl.program_id(0)",
            f"row0 = place // {along}",
            f"col0 = (place % {along}){wide} * {self.tile.block}",
        ]

    def _split(self, whole: str, depth: int) -> list[str]:
        """The indices of the first axes from their common number."""
        lines: list[str] = []
        for k in reversed(range(1, depth)):
            extent = self.number(f"e{k}", self.outer[k], "i32")
            lines += [f"i{k} = ({whole} % {extent}).to(tl.int64)", f"rest = {whole} // {extent}"]
            whole = "rest"
        return [*lines, f"i0 = {whole}.to(tl.int64)"] if depth else []

    def _is_wide(self) -> bool:
        """Whether 32 bits may be too few to count the elements of a row."""
        return not isinstance(self.inner, int) or self.inner >= 1 << 30

    def columns(self) -> list[str]:
        """Where the elements of a tile are along the rows; in a loop, behind ``first``."""
        tile = self.tile
        lanes = f"tl.arange(0, {tile.block})"
        first = "first + " if tile.looped else "" if tile.whole else "col0 + "
        lines = [f"col_N = ({first}{lanes})[None, :]"]
        return [*lines, f"col_ok = col_N < {self.extent}"] if self.column_mask else lines


__all__ = ["Places"]
