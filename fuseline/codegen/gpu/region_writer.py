"""Writes the Triton statements of a region: those of a tile's rows, and those of its elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from fuseline.codegen.gpu.places import Places
from fuseline.codegen.gpu.pointwise import Loop
from fuseline.codegen.gpu.reduction import reduction, unrolled
from fuseline.codegen.gpu.scalar import (
    HALVES,
    TRITON,
    Term,
    convert,
    literal,
    round_to,
    to_store,
    widened,
)
from fuseline.codegen.region_writer import RegionWriter
from fuseline.ir.ops.create import Iota
from fuseline.ir.region import Node
from fuseline.ir.types import DType


@dataclass
class Writer(RegionWriter[Loop]):
    """Writes Triton: the rows are those of a tile, and its elements are done at once."""

    spelling = TRITON

    places: Places

    def loop(self, before: tuple[str, ...], body: tuple[str, ...]) -> Loop:
        """The loop over the elements of a tile that reduces nothing."""
        return Loop(before, body)

    # -- places -----------------------------------------------------------------------------

    def pointers(self) -> list[str]:
        """Where the rows of each access begin, or what they count from."""
        return [
            line
            for i, access in enumerate(self.walks.accesses)
            for line in self._pointer(i, access.buffer)
        ]

    def _pointer(self, i: int, buffer: int) -> list[str]:
        terms = [
            self.places.times(f"i{k}", f"s{i}_{k}", axis.strides[i])
            for k, axis in enumerate(self.walks.outer)
            if axis.strides[i] != 0
        ]
        shift = self.walks.accesses[i].shift
        if shift != 0:
            terms.append(self.places.number(f"shift{i}", shift))
        if not self._by_row(i) and self.walks.inner.strides[i] == 0:
            terms.append("tl.zeros((1, 1), tl.int32)")
        offset = " + ".join(terms)
        if buffer < 0:
            return [f"k{i} = {offset or '0'}"]
        name = self.walks.buffers[buffer][0]
        return [f"p{i} = {name} + ({offset})" if offset else f"p{i} = {name}"]

    def _by_row(self, access: int) -> bool:
        """Whether an access moves from row to row of a tile."""
        outer = self.walks.outer[-1:] if self.places.tile.rows == "tiled" else self.walks.outer
        return any(axis.strides[access] != 0 for axis in outer)

    def _column(self, access: int) -> str:
        """What is added to the beginning of the rows for each element; empty for none."""
        stride = self.walks.inner.strides[access]
        terms: list[str] = []
        if stride != 0:
            terms.append(
                "col_N"
                if stride == 1
                else f"col_N.to(tl.int64) * {self.places.number(f's{access}', stride)}"
            )
        if self.walks.few and self.step and self.walks.steps[access] != 0:
            step = self.places.number(f"r{access}", self.walks.steps[access])
            terms.append(str(self.step * int(step)) if step.isdigit() else f"{self.step} * {step}")
        return " + ".join(terms)

    def _mask(self, access: int) -> str:
        columns = self.walks.inner.strides[access] != 0
        mask = self.places.mask(rows=self._by_row(access), columns=columns)
        return f", mask={mask}" if mask else ""

    # -- values -----------------------------------------------------------------------------

    def definition(self, name: str, dtype: DType, text: str) -> str:
        """An assignment."""
        del dtype
        return f"{name} = {text}"

    def number(self, node: Node, value: sympy.Expr, name: str) -> str:
        """A run-time integer as the dtype holds it."""
        runtime = widened(self.places.number(f"c{self.order[node]}", value))
        return f"{name} = {convert(runtime, DType.I64, node.value.dtype)}"

    def read(self, node: Node, name: str) -> str:
        """A load, 16-bit types as float32."""
        access = self.walks.reads[node.value, node.axes]
        column = self._column(access)
        place = f"p{access}{f' + {column}' if column else ''}"
        text = f"tl.load({place}{self._mask(access)})"
        wide = ".to(tl.float32)" if node.value.dtype in HALVES else ""
        return f"{name} = {text}{wide}"

    def unrolled(self, node: Node, terms: Sequence[Term], name: str) -> str:
        """Statements, and what of them is the value."""
        lines, text = unrolled(node, list(terms), name)
        self.emit(node, *lines)
        return text

    def count(self, node: Node, op: Iota) -> str:
        """Counted in 64 bits, floats in float64."""
        access = self.walks.counts[node]
        column = self._column(access)
        index = widened(f"k{access}{f' + {column}' if column else ''}")
        name = self.name(node, "n")
        self.emit(node, f"{name} = {index}")
        wide = DType.F64 if op.dtype.is_float else DType.I64
        start, step = (
            convert(widened(self.places.number(f"{word}{self.order[node]}", v)), DType.I64, wide)
            if isinstance(v, sympy.Expr)
            else literal(v, wide)
            for word, v in (("start", op.start), ("step", op.step))
        )
        value = f"{convert(name, DType.I64, wide)} * {step} + {start}"
        return convert(f"({value})", wide, DType.F32 if op.dtype in HALVES else op.dtype)

    def store(self, i: int) -> tuple[str, bool]:
        """A masked store, which rounds."""
        node = self.walks.region.results[i]
        access = self.walks.first_write + i
        along = self.walks.few or not self.walks.region.reduced
        column = self._column(access)
        place = f"p{access}{f' + {column}' if column else ''}"
        dtype = node.value.dtype
        value = to_store(self.raw(node), dtype, dtype)
        text = f"tl.store({place}, {value}{self._mask(access)})"
        return text, bool(along) or bool(column)

    def reduce(self, node: Node) -> Loop:
        """Partial results for each column of a tile, and their reduction behind the loop."""
        source = node.inputs[0]
        x = self.term(source)
        i, name = self.order[node], f"v{self.order[node]}"
        found = reduction(node, x, self.places.extent)
        before, body, after = list(self.before), list(self.inside), list[str]()
        shape = f"({self.places.tile.block_rows}, {self.places.tile.block})"
        names = [f"a{i}_{k}" for k in range(len(found.parts))]
        for own, part in zip(names, found.parts, strict=True):
            element = part.element
            if not self.varies[source]:
                element = f"tl.broadcast_to({element}, {shape})"
            if self.places.column_mask:
                element = f"tl.where(col_ok, {element}, {part.first})"
            if self.places.tile.looped:
                before.append(f"{own} = tl.broadcast_to({part.first}, {shape})")
                element = part.step.format(a=own, x=element)
            body.append(f"{own} = {element}")
            after.append(f"{own} = {part.over}({own}, axis=1, keep_dims=True)")
        result = round_to(found.result.format(*names), node.value.dtype)
        self.before = [f"{name} = {result}"]
        self.reduced(node, name, forget=self.places.tile.looped)
        return Loop(tuple(before), tuple(body), tuple(after))


__all__ = ["Writer"]
