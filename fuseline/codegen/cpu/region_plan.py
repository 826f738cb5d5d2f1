"""Plans the kernel of an element-wise region: axes collapsed, strides named, pointers placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from fuseline.codegen.cpu.pointwise import STORED, Planned, Pointer, PointwiseKernel
from fuseline.codegen.cpu.region_writer import Writer
from fuseline.codegen.cpu.scalar import ScalarError
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.region import Axes, Node, Region, RegionError, analyse
from fuseline.ir.types import Dim, DType, dim

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


def plan(
    body: Func,
    operands: Sequence[Layout],
    results: Sequence[Layout],
    shifts: Sequence[Dim] = (),
) -> Planned | str:
    """The kernel of a region whose operands and results lie as told, or why there is none.

    ``shifts`` are elements to add to the beginning of each result (for a part of a larger one).
    """
    try:
        region = analyse(body)
        return _Builder(body, region, operands, results, shifts).build()
    except (RegionError, ScalarError) as error:
        return str(error)


@dataclass
class _Walk:
    """A collapsed axis: its extent, and the stride of every access along it."""

    extent: Dim
    strides: list[Dim]


def _collapse(axes: Sequence[_Walk]) -> list[_Walk]:
    """Join neighbouring axes that every access walks as one; axes of extent 1 vanish."""
    found: list[_Walk] = []
    for axis in axes:
        if axis.extent == 1:
            continue
        last = found[-1] if found else None
        if last and last.strides == [dim(s * axis.extent) for s in axis.strides]:
            found[-1] = _Walk(dim(last.extent * axis.extent), axis.strides)
        else:
            found.append(axis)
    return found


@dataclass
class _Builder:
    """Turns a region and the layouts around it into a kernel."""

    body: Func
    region: Region
    layouts: Sequence[Layout]
    results: Sequence[Layout]
    shifts: Sequence[Dim]
    accesses: list[Access] = field(default_factory=list[Access])
    reads: dict[tuple[Value, Axes], int] = field(default_factory=dict[tuple[Value, Axes], int])
    counts: dict[Node, int] = field(default_factory=dict[Node, int])
    names: list[str] = field(default_factory=list[str])
    values: list[Dim] = field(default_factory=list[Dim])
    constants: list[str] = field(default_factory=list[str])
    few: int = 0
    steps: list[Dim] = field(default_factory=list[Dim])

    @property
    def first_write(self) -> int:
        """The number of the first result's access."""
        return len(self.accesses) - len(self.region.results)

    def build(self) -> Planned:
        used = self._find_accesses()
        outer, inner = self._axes()
        self._dim("n", inner.extent)
        for i, axis in enumerate(outer):
            self._dim(f"e{i}", axis.extent)
        pointers = tuple(
            self._pointer(i, access, outer, inner) for i, access in enumerate(self.accesses)
        )
        loops, last = Writer(self, inner.strides).write()
        kernel = PointwiseKernel(
            title=_title(self.region),
            buffers=self._buffers(used),
            dims=tuple(self.names),
            outer=len(outer),
            by_row=bool(self.region.reduced) and not self.few,
            pointers=tuple(p for p in pointers if p is not None),
            constants=tuple(self.constants),
            loops=loops,
            last=last,
        )
        return Planned(kernel, tuple(used), tuple(self.values))

    def _find_accesses(self) -> list[int]:
        """Note every way in which memory is walked; gives the numbers of the operands that are."""
        number = {arg: i for i, arg in enumerate(self.body.args)}
        used = sorted({number[n.value] for n in self.region.nodes if n.op is None})
        for node in self.region.nodes:
            if isinstance(node.op, Iota):
                self.counts[node] = self._access(node.axes, [1] * len(node.axes), Access([]))
            if node.op is None:
                i = number[node.value]
                access = Access([], used.index(i), dtype=node.value.dtype)
                strides = self.layouts[i].strides
                self.reads[node.value, node.axes] = self._access(node.axes, strides, access)
        for i, node in enumerate(self.region.results):
            shift = self.shifts[i] if self.shifts else 0
            access = Access([], len(used) + i, written=True, dtype=node.value.dtype, shift=shift)
            self._access(self.region.result_axes[i], self.results[i].strides, access)
        return used

    def _access(self, axes: Axes, strides: Sequence[Dim], access: Access) -> int:
        access.strides = [0] * len(self.region.space)
        for axis, stride in zip(axes, strides, strict=True):
            if axis >= 0 and self.region.space[axis] != 1:
                access.strides[axis] = dim(access.strides[axis] + stride)
        self.accesses.append(access)
        return len(self.accesses) - 1

    def _axes(self) -> tuple[list[_Walk], _Walk]:
        """The collapsed axes around the row, and the row."""
        walks = [
            _Walk(extent, [a.strides[i] for a in self.accesses])
            for i, extent in enumerate(self.region.space)
        ]
        outer = _collapse([walks[i] for i in self.region.kept])
        if not self.region.reduced:
            inner = [outer.pop()] if outer else []
        else:
            inner = _collapse([walks[i] for i in self.region.reduced])
        if len(inner) > 1:
            raise RegionError("the reduced axes cannot be walked as one")
        none = _Walk(1, [0] * len(self.accesses))
        reduced = inner[0] if inner else none
        if self.region.reduced and outer and self._written_out(outer[-1], reduced):
            self.few, self.steps = int(reduced.extent), reduced.strides
            inner = [outer.pop()]
        return outer, inner[0] if inner else none

    def _written_out(self, kept: _Walk, reduced: _Walk) -> bool:
        """Whether to walk a kept axis and reduce a few elements, none beside the other, at each."""
        if not isinstance(reduced.extent, int) or not 0 < reduced.extent <= FEW:
            return False
        stored = reduced.strides[self.first_write :]
        return 1 in kept.strides and 1 not in reduced.strides and not any(stored)

    def _dim(self, name: str, value: Dim) -> str:
        self.names.append(name)
        self.values.append(value)
        return f"dim[{len(self.names) - 1}]"

    def _pointer(
        self, i: int, access: Access, outer: Sequence[_Walk], inner: _Walk
    ) -> Pointer | None:
        """The start of a row of an access; also names its stride along the row where not 0 or 1."""
        terms = [
            f" + i{k} * {self._dim(f's{i}_{k}', axis.strides[i])}"
            for k, axis in enumerate(outer)
            if axis.strides[i] != 0
        ]
        if inner.strides[i] not in (0, 1):
            stride = self._dim(f"s{i}", inner.strides[i])
            self.constants.append(f"const int64_t s{i} = {stride};")
        if self.few and self.steps[i] != 0:
            step = self._dim(f"r{i}", self.steps[i])
            self.constants.append(f"const int64_t r{i} = {step};")
        if access.shift != 0:
            terms.append(f" + {self._dim(f'shift{i}', access.shift)}")
        if access.buffer < 0:
            return Pointer(f"k{i}", "", "0" + "".join(terms), written=False)
        start = f"call->buf[{access.buffer}]"
        kind = STORED[access.dtype] if access.written else f"const {STORED[access.dtype]}"
        return Pointer(f"p{i}", kind, f"({kind} *){start}{''.join(terms)}", access.written)

    def _buffers(self, used: Sequence[int]) -> tuple[str, ...]:
        """What the header says of the buffers: number and element type."""
        taken = [f"x{i} {self.body.args[j].dtype}" for i, j in enumerate(used)]
        made = [f"y{i} {v.dtype}" for i, v in enumerate(self.body.returns)]
        return (*taken, *made)

    def scalar(self, value: sympy.Expr) -> str:
        """A run-time integer that the region computes with."""
        return self._dim(f"c{len(self.names)}", value)


def _title(region: Region) -> str:
    """The ops of a region in order, for the head of the source."""
    names = [n.op.name for n in region.nodes if n.op is not None and not isinstance(n.op, Full)]
    return ", ".join(dict.fromkeys(names)) or "copy"


__all__ = ["plan"]
