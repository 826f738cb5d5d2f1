"""How the kernel of an element-wise region walks memory: every access, over collapsed axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.region import Axes, Node, Region, RegionError, analyse
from fuseline.ir.types import Dim, DType, dim, same

FEW = 32
"""A reduction of at most so many elements, none beside the other, is written out."""


@dataclass
class Access:
    """One way in which a kernel walks memory, or counts (without a buffer): strides by axis."""

    strides: list[Dim]
    buffer: int = -1
    written: bool = False
    dtype: DType = DType.I64
    shift: Dim = 0


@dataclass(frozen=True)
class Walk:
    """A collapsed axis: its extent, and the stride of every access along it."""

    extent: Dim
    strides: list[Dim]


@dataclass
class Walks:
    """The accesses of a region, and the axes that they walk.

    Attributes:
        body: the region as a func.
        region: the same, point by point.
        used: the operands (by number) that are read; they are the first buffers.
        accesses: every way in which memory is walked; the last ones write the results.
        reads: the accesses of arguments.
        counts: the accesses of counted values.
        outer: the collapsed axes around the row.
        inner: the row.
        few: elements of a reduction that is written out for each element of the row, 0 where
            reductions run along the row.
        steps: the strides of every access from one of those few to the next.

    """

    body: Func
    region: Region
    used: list[int] = field(default_factory=list[int])
    accesses: list[Access] = field(default_factory=list[Access])
    reads: dict[tuple[Value, Axes], int] = field(default_factory=dict[tuple[Value, Axes], int])
    counts: dict[Node, int] = field(default_factory=dict[Node, int])
    outer: list[Walk] = field(default_factory=list[Walk])
    inner: Walk = field(default_factory=lambda: Walk(1, []))
    few: int = 0
    steps: list[Dim] = field(default_factory=list[Dim])

    @property
    def first_write(self) -> int:
        """The number of the first result's access."""
        return len(self.accesses) - len(self.region.results)

    @property
    def buffers(self) -> tuple[tuple[str, DType], ...]:
        """Name and element type of each buffer: operands that are read, then results."""
        taken = [(f"x{i}", self.body.args[j].dtype) for i, j in enumerate(self.used)]
        return (*taken, *((f"y{i}", v.dtype) for i, v in enumerate(self.body.returns)))

    @property
    def title(self) -> str:
        """The ops of the region in order, for the head of a source."""
        nodes = [n.op for n in self.region.nodes if n.op is not None]
        names = [op.name for op in nodes if not isinstance(op, Full)]
        return ", ".join(dict.fromkeys(names)) or "copy"

    def varies(self, node: Node, strides: Sequence[Dim], known: dict[Node, bool]) -> bool:
        """Whether a value changes along an axis with these strides, known for its operands."""
        if node.is_reduction and (not self.few or strides is self.steps):
            return False
        if node.op is None:
            return strides[self.reads[node.value, node.axes]] != 0
        if isinstance(node.op, Iota):
            return strides[self.counts[node]] != 0
        return any(known[n] for n in node.inputs)


def walk_region(
    body: Func,
    operands: Sequence[Layout],
    results: Sequence[Layout],
    shifts: Sequence[Dim] = (),
) -> Walks:
    """The walks of a region whose operands and results lie as told.

    ``shifts`` are elements to add to the beginning of each result (for a part of a larger one).

    Raises:
        RegionError: the body is no region, or its reductions need more than one stride.

    """
    walks = Walks(body, analyse(body))
    _find_accesses(walks, operands, results, shifts)
    _find_axes(walks)
    return walks


def _find_accesses(
    walks: Walks, operands: Sequence[Layout], results: Sequence[Layout], shifts: Sequence[Dim]
) -> None:
    region = walks.region
    number = {arg: i for i, arg in enumerate(walks.body.args)}
    walks.used = sorted({number[n.value] for n in region.nodes if n.op is None})
    for node in region.nodes:
        if isinstance(node.op, Iota):
            walks.counts[node] = _add(walks, node.axes, [1] * len(node.axes), Access([]))
        if node.op is None:
            i = number[node.value]
            access = Access([], walks.used.index(i), dtype=node.value.dtype)
            walks.reads[node.value, node.axes] = _add(walks, node.axes, operands[i].strides, access)
    for i, node in enumerate(region.results):
        shift = shifts[i] if shifts else 0
        access = Access([], len(walks.used) + i, True, node.value.dtype, shift)
        _add(walks, region.result_axes[i], results[i].strides, access)


def _add(walks: Walks, axes: Axes, strides: Sequence[Dim], access: Access) -> int:
    access.strides = [0] * len(walks.region.space)
    for axis, stride in zip(axes, strides, strict=True):
        if axis >= 0 and walks.region.space[axis] != 1:
            access.strides[axis] = dim(access.strides[axis] + stride)
    walks.accesses.append(access)
    return len(walks.accesses) - 1


def _find_axes(walks: Walks) -> None:
    """Collapse the axes around the row, and the row."""
    region = walks.region
    axes = [
        Walk(extent, [a.strides[i] for a in walks.accesses])
        for i, extent in enumerate(region.space)
    ]
    outer = _collapse([axes[i] for i in region.kept])
    if not region.reduced:
        inner = [outer.pop()] if outer else []
    else:
        inner = _collapse([axes[i] for i in region.reduced])
    if len(inner) > 1:
        raise RegionError("the reduced axes cannot be walked as one")
    none = Walk(1, [0] * len(walks.accesses))
    reduced = inner[0] if inner else none
    if region.reduced and outer and _is_written_out(walks, outer[-1], reduced):
        walks.few, walks.steps = int(reduced.extent), reduced.strides
        inner = [outer.pop()]
    walks.outer, walks.inner = outer, inner[0] if inner else none


def _collapse(axes: Sequence[Walk]) -> list[Walk]:
    """Join neighbouring axes that every access walks as one; axes of extent 1 vanish."""
    found: list[Walk] = []
    for axis in axes:
        if axis.extent == 1:
            continue
        last = found[-1] if found else None
        if last and last.strides == [dim(s * axis.extent) for s in axis.strides]:
            found[-1] = Walk(dim(last.extent * axis.extent), axis.strides)
        else:
            found.append(axis)
    return found


def _is_written_out(walks: Walks, kept: Walk, reduced: Walk) -> bool:
    """Whether to walk a kept axis and reduce a few elements, none beside the other, at each.

    What lies side by side along the reduced axis and is the same along the kept one (the weights
    of a few experts) does not matter.
    """
    if not isinstance(reduced.extent, int) or not 0 < reduced.extent <= FEW:
        return False
    stored = reduced.strides[walks.first_write :]
    beside = any(
        same(step, 1) and not same(along, 0)
        for step, along in zip(reduced.strides, kept.strides, strict=True)
    )
    return 1 in kept.strides and not beside and not any(stored)


__all__ = ["Access", "Walk", "Walks", "walk_region"]
