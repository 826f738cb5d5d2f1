"""From element-wise regions to launches: tiles chosen, integers named, statements written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fuseline.codegen.gpu.kernel import TritonKernel, launch
from fuseline.codegen.gpu.places import Places
from fuseline.codegen.gpu.pointwise import PointwiseKernel
from fuseline.codegen.gpu.region_writer import Writer
from fuseline.codegen.gpu.scalar import ScalarError, functions
from fuseline.codegen.gpu.tiles import Choice, element_tiles, row_tiles, square_tiles
from fuseline.codegen.lower import Launch, Operand, Refusal
from fuseline.codegen.points import Points
from fuseline.codegen.walks import Walks, walk_region
from fuseline.ir.layout import LayoutMap
from fuseline.ir.region import RegionError
from fuseline.ir.types import Dim, same


def launches(parts: Sequence[Points], layouts: LayoutMap) -> list[Launch] | Refusal:
    """The launches of regions, one after the other."""
    found: list[Launch] = []
    for points in parts:
        try:
            walks = walk_region(points.body, points.operand_places, points.places, points.shifts)
            tiles = choices(walks, steady=layouts.batch_invariant)
            found += [_launch(points, walks, choice, layouts) for choice in tiles]
        except (RegionError, ScalarError) as error:
            return Refusal(str(error))
    return found


def choices(walks: Walks, *, steady: bool = False) -> list[Choice]:
    """The tiles for a region; where there are several, each for its own sizes: not for reductions
    where these are to be ``steady``.
    """
    outer, inner = [axis.extent for axis in walks.outer], walks.inner
    apart = [
        i for i, stride in enumerate(inner.strides) if walks.accesses[i].buffer >= 0 and stride != 0
        and not same(stride, 1)
    ]  # fmt: skip
    across = bool(outer) and any(same(walks.outer[-1].strides[i], 1) for i in apart)
    if walks.region.reduced and not walks.few:
        return row_tiles(outer, inner.extent, across=across, steady=steady)
    if across:
        return square_tiles(outer, inner.extent)
    return element_tiles(outer, inner.extent, _per_thread(walks))


def _per_thread(walks: Walks) -> int:
    """Elements of the narrowest access in 16 bytes; where types differ, no more than 8."""
    sizes = {a.dtype.itemsize for a in walks.accesses if a.buffer >= 0}
    return 16 // min(sizes) if len(sizes) == 1 else min(8, 16 // min(sizes))


def _launch(points: Points, walks: Walks, choice: Choice, layouts: LayoutMap) -> Launch:
    extents = [axis.extent for axis in walks.outer]
    steady = layouts.batch_invariant and bool(walks.region.reduced) and not walks.few
    places = Places(choice.tile, extents, walks.inner.extent, steady=steady)
    kernel = _kernel(walks, places)
    buffers = (*(points.operands[i] for i in walks.used), *points.results)
    return configured(kernel, buffers, places, choice, layouts, points.work)


def configured(
    kernel: TritonKernel,
    buffers: Sequence[Operand],
    places: Places,
    choice: Choice,
    layouts: LayoutMap,
    work: Dim,
) -> Launch:
    """The launch of a kernel over a tile, with each number of warps."""
    made = [
        launch(
            dataclasses.replace(kernel, warps=warps),
            buffers,
            places.values,
            choice.grid,
            layouts,
            work,
            when=choice.when,
        )
        for warps in choice.warps
    ]
    return dataclasses.replace(made[0], others=tuple(made[1:]))


def _kernel(walks: Walks, places: Places) -> PointwiseKernel:
    columns, start = places.columns(), places.start()
    writer = Writer(walks, places)
    start += writer.pointers()
    loops, last = writer.write()
    statements = [line for each in loops for line in (*each.before, *each.body, *each.after)]
    return PointwiseKernel(
        title=walks.title,
        pointers=tuple((name, dtype.value) for name, dtype in walks.buffers),
        numbers=tuple(places.types.items()),
        tile=places.tile,
        start=tuple(start),
        columns=tuple(columns),
        extent=places.extent if places.tile.looped else "",
        loops=loops,
        last=last,
        functions=functions([*statements, *last]),
    )


__all__ = ["choices", "configured", "launches"]
