"""Plans the kernel of an element-wise region: strides named, pointers placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from fuseline.codegen.cpu.pointwise import STORED, Planned, Pointer, PointwiseKernel
from fuseline.codegen.cpu.region_writer import Writer
from fuseline.codegen.cpu.scalar import ScalarError
from fuseline.codegen.walks import Access, Walks, walk_region
from fuseline.ir.core import Func
from fuseline.ir.layout import Layout
from fuseline.ir.region import RegionError
from fuseline.ir.types import Dim


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
        return _Builder(walk_region(body, operands, results, shifts)).build()
    except (RegionError, ScalarError) as error:
        return str(error)


@dataclass
class _Builder:
    """Turns the walks of a region into a kernel."""

    walks: Walks
    names: list[str] = field(default_factory=list[str])
    values: list[Dim] = field(default_factory=list[Dim])
    constants: list[str] = field(default_factory=list[str])

    def build(self) -> Planned:
        walks = self.walks
        self._dim("n", walks.inner.extent)
        for i, axis in enumerate(walks.outer):
            self._dim(f"e{i}", axis.extent)
        pointers = tuple(self._pointer(i, access) for i, access in enumerate(walks.accesses))
        loops, last = Writer(walks, self.scalar).write()
        kernel = PointwiseKernel(
            title=walks.title,
            buffers=tuple(f"{name} {dtype}" for name, dtype in walks.buffers),
            dims=tuple(self.names),
            outer=len(walks.outer),
            by_row=bool(walks.region.reduced) and not walks.few,
            pointers=pointers,
            constants=tuple(self.constants),
            loops=loops,
            last=last,
        )
        return Planned(kernel, tuple(walks.used), tuple(self.values))

    def _dim(self, name: str, value: Dim) -> str:
        self.names.append(name)
        self.values.append(value)
        return f"dim[{len(self.names) - 1}]"

    def _pointer(self, i: int, access: Access) -> Pointer:
        """The start of a row of an access; also names its stride along the row where not 0 or 1."""
        walks = self.walks
        terms = [
            f" + i{k} * {self._dim(f's{i}_{k}', axis.strides[i])}"
            for k, axis in enumerate(walks.outer)
            if axis.strides[i] != 0
        ]
        if walks.inner.strides[i] not in (0, 1):
            stride = self._dim(f"s{i}", walks.inner.strides[i])
            self.constants.append(f"const int64_t s{i} = {stride};")
        if walks.few and walks.steps[i] != 0:
            step = self._dim(f"r{i}", walks.steps[i])
            self.constants.append(f"const int64_t r{i} = {step};")
        if access.shift != 0:
            terms.append(f" + {self._dim(f'shift{i}', access.shift)}")
        if access.buffer < 0:
            return Pointer(f"k{i}", "", "0" + "".join(terms), written=False)
        start = f"call->buf[{access.buffer}]"
        kind = STORED[access.dtype] if access.written else f"const {STORED[access.dtype]}"
        return Pointer(f"p{i}", kind, f"({kind} *){start}{''.join(terms)}", access.written)

    def scalar(self, value: sympy.Expr) -> str:
        """A run-time integer that the region computes with."""
        return self._dim(f"c{len(self.names)}", value)


__all__ = ["plan"]
