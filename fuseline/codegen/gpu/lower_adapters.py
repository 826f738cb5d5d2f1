"""Lowering of low-rank adapters of which each row has its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuseline.codegen.adapters import Adapters, adapters_of, row_stride, rows_of
from fuseline.codegen.forms import Form, When
from fuseline.codegen.gpu.adapters import (
    AdapterHighKernel,
    AdapterKernel,
    AdapterLowKernel,
    AdapterSortKernel,
)
from fuseline.codegen.gpu.adapters_choice import (
    Tile,
    adapter_ranges,
    high_tiles,
    low_tiles,
    parts_of,
)
from fuseline.codegen.gpu.experts import stops_at
from fuseline.codegen.gpu.experts_choice import Range
from fuseline.codegen.gpu.kernel import ceil_div, launch
from fuseline.codegen.lower import Launch, Lowered, Operand, Refusal, Scratch, lowers
from fuseline.codegen.lower import work as work_of
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.types import Dim, bounds, dim

LARGEST = 1 << 31
"""Elements of one adapter's matrix, whose places are counted in 32 bits."""


@lowers(MultiLora, backend="cuda")
def lower_multi_lora(op: MultiLora, layouts: LayoutMap) -> Lowered:
    """The rows of every adapter by its A; those by its B, and base; before that a sort of the rows
    where there are many.
    """
    adapters = adapters_of(op, layouts)
    if not isinstance(adapters, Adapters):
        return adapters
    if adapters.rank * max(adapters.depth, adapters.width) >= LARGEST:
        return Refusal(f"an adapter of rank {adapters.rank}: too large for the kernel")
    return _Lowering.of(op, adapters, layouts).launches()


@dataclass(frozen=True)
class _Lowering:
    """The launches of one op; places in scratch are in bytes."""

    op: MultiLora
    adapters: Adapters
    layouts: LayoutMap
    ranges: list[Range]
    parts_at: int
    list_at: Dim
    scratch: Scratch

    @classmethod
    def of(cls, op: MultiLora, adapters: Adapters, layouts: LayoutMap) -> _Lowering:
        """Starts and stops of the adapters' rows, then the sums, then the list of rows."""
        rows = rows_of(op)
        low, high = bounds(rows, layouts.func.symbols)
        ranges = adapter_ranges(count=adapters.count, least=low, most=high)
        parts_at = 2 * stops_at(adapters.count + 1)
        list_at = dim(parts_at + -(-adapters.rank // 4) * 16 * rows)
        list_at = dim(list_at + max(_further(adapters, r, rows) for r in ranges))
        scratch = Scratch(dim(list_at + 4 * rows))
        return cls(op, adapters, layouts, ranges, parts_at, list_at, scratch)

    def launches(self) -> list[Launch]:
        """In the order in which they run."""
        return [
            *self._sorts(),
            *(self._low(r) for r in self.ranges),
            *(self._high(r) for r in self.ranges),
        ]

    @property
    def rows(self) -> Dim:
        return rows_of(self.op)

    @property
    def size(self) -> int:
        return 4 if self.adapters.dtype == "f32" else 2

    def _when(self, first: int, last: int | None) -> When:
        everything = (first, last) == (self.ranges[0].first, self.ranges[-1].last)
        return None if everything else (self.rows, first, last)

    def _sorts(self) -> list[Launch]:
        using = [r for r in self.ranges if r.find == "sorted"]
        if not using:
            return []
        kernel = AdapterSortKernel(count=self.adapters.count, warps=4)
        dims = {"rows": self.rows, "list_at": self.list_at}
        when = self._when(using[0].first, using[-1].last)
        return [
            launch(
                kernel,
                (self.op.ids, self.scratch),
                dims,
                (self.adapters.count + 1,),
                self.layouts,
                work_of(self.op),
                when=when,
            )
        ]

    def _low(self, r: Range) -> Launch:
        a = self.adapters
        kernel = AdapterLowKernel(
            adapters=a,
            find=r.find,
            splits=parts_of(a.depth, r.last),
            block_m=r.block_m,
            block_n=16,
            block_k=16,
        )
        buffers = (*self._ids(r), self.op.x, self.op.a, self.scratch)
        dims: dict[str, Dim] = {"x_stride": row_stride(self.op.x, self.layouts)}
        tiles = low_tiles(r.block_m, rank=a.rank, depth=a.depth, size=self.size)
        return self._product(r, kernel, tiles, a.rank, buffers, dims, "adapters' first product")

    def _high(self, r: Range) -> Launch:
        a, op = self.adapters, self.op
        kernel = AdapterHighKernel(
            adapters=a,
            find=r.find,
            splits=parts_of(a.depth, r.last),
            block_m=r.block_m,
            block_n=16,
            block_k=16,
        )
        given = (op.b, op.base, op.factor, op.y)
        buffers = (*self._ids(r), *(v for v in given if v is not None), self.scratch)
        dims: dict[str, Dim] = {}
        if op.base is not None:
            dims["base_stride"] = row_stride(op.base, self.layouts)
        dims["y_stride"] = row_stride(op.y, self.layouts)
        tiles = high_tiles(r.block_m, rank=a.rank, width=a.width, size=self.size)
        return self._product(r, kernel, tiles, a.width, buffers, dims, "adapters' second product")

    def _ids(self, r: Range) -> tuple[Operand, ...]:
        return () if r.find == "sorted" else (self.op.ids,)

    def _product(
        self,
        r: Range,
        kernel: AdapterKernel,
        tiles: list[Tile],
        columns: int,
        buffers: tuple[Operand, ...],
        dims: dict[str, Dim],
        part: str,
    ) -> Launch:
        """A product for a range of row counts, in every configuration."""
        dims = {"rows": self.rows, **dims, "parts_at": self.parts_at}
        dims |= {"list_at": self.list_at} if r.find == "sorted" else {}
        splits = kernel.splits if isinstance(kernel, AdapterLowKernel) else 1
        words = {"one": "one row to a block", "alike": "rows of an adapter to a block"}
        form = Form(part, words.get(r.find, f"sorted rows, {r.block_m} to a block"), "rows")
        made = [
            launch(
                replace(kernel, **tile._asdict()),
                buffers,
                dims,
                (ceil_div(columns, tile.block_n), self._blocks(r), splits),
                self.layouts,
                work_of(self.op),
                when=self._when(r.first, r.last),
                form=form,
            )
            for tile in tiles
        ]
        return replace(made[0], others=tuple(made[1:]))

    def _blocks(self, r: Range) -> Dim:
        """Blocks of rows, in the worst case: each group may have one that is not full."""
        if r.find != "sorted":
            return self.rows
        active = self.adapters.count if self.op.active is None else self.op.active
        return dim(ceil_div(self.rows, r.block_m) + active + 1)


def _further(a: Adapters, r: Range, rows: Dim) -> int:
    """Bytes of the parts behind the first one, whatever the number of rows in a range."""
    parts = parts_of(a.depth, r.last)
    most = rows if isinstance(rows, int) else (r.last or 0)
    return (parts - 1) * -(-a.rank // 4) * 16 * most


__all__ = ["lower_multi_lora"]
