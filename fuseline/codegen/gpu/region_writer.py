"""Writes the Triton statements of a region: those of a tile's rows, and those of its elements."""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy
import torch

from fuseline.codegen.gpu.places import Places
from fuseline.codegen.gpu.pointwise import Loop
from fuseline.codegen.gpu.reduction import reduction, unrolled
from fuseline.codegen.gpu.scalar import (
    HALVES,
    Term,
    convert,
    expression,
    literal,
    round_to,
    to_store,
    widened,
)
from fuseline.codegen.walks import Walks
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy
from fuseline.ir.region import Node
from fuseline.ir.types import DType


@dataclass
class Writer:
    """Writes the statements of a tile.

    Where a few elements are reduced for each element of the row, ``step`` says
    which of them is being written; what depends on it is written for each.
    """

    walks: Walks
    places: Places
    step: int = 0
    known: dict[tuple[Node, str, int], str] = field(
        default_factory=dict[tuple[Node, str, int], str]
    )
    before: list[str] = field(default_factory=list[str])
    inside: list[str] = field(default_factory=list[str])
    order: dict[Node, int] = field(default_factory=dict[Node, int])
    varies: dict[Node, bool] = field(default_factory=dict[Node, bool])
    stepped: dict[Node, bool] = field(default_factory=dict[Node, bool])

    def write(self) -> tuple[tuple[Loop, ...], tuple[str, ...]]:
        """The loops of a tile, and the statements behind them."""
        region, inner, steps = self.walks.region, self.walks.inner.strides, self.walks.steps
        for i, node in enumerate(region.nodes):
            self.order[node] = i
            self.varies[node] = self.walks.varies(node, inner, self.varies)
            self.stepped[node] = bool(steps) and self.walks.varies(node, steps, self.stepped)
        along = [n for n in region.nodes if n.is_reduction and not self.walks.few]
        loops = [self._reduce(node) for node in along]
        stores = [self._store(i) for i in range(len(region.results))]
        elements = [text for text, by_element in stores if by_element]
        rows = [text for text, by_element in stores if not by_element]
        if elements:
            loops.append(Loop(tuple(self.before), (*self.inside, *elements)))
            self.before = []
        return tuple(loops), (*self.before, *rows)

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

    def _key(self, node: Node, kind: str) -> tuple[Node, str, int]:
        return (node, kind, self.step if self.stepped[node] else -1)

    def _name(self, node: Node, letter: str = "v") -> str:
        suffix = f"_{self.step}" if self.stepped[node] else ""
        return f"{letter}{self.order[node]}{suffix}"

    def _emit(self, node: Node, *lines: str) -> None:
        (self.inside if self.varies[node] else self.before).extend(lines)

    def term(self, node: Node) -> Term:
        """The rounded value of a node, with the statements that give it."""
        constant = _constant(node)
        text = self.known.get(self._key(node, "rounded"))
        if text is None:
            leaf = node.op is None or isinstance(node.op, Full)
            text = self._leaf(node, constant) if leaf else self._rounded(node)
            self.known[self._key(node, "rounded")] = text
        return Term(text, node.value.tensor, constant)

    def _leaf(self, node: Node, constant: bool | int | float | None) -> str:
        dtype, name = node.value.dtype, self._name(node)
        if constant is not None:
            return literal(constant, dtype)
        if isinstance(node.op, Full):
            assert isinstance(node.op.value, sympy.Expr), "other values are constants"
            runtime = self.places.number(f"c{self.order[node]}", node.op.value)
            self._emit(node, f"{name} = {convert(widened(runtime), DType.I64, dtype)}")
            return name
        access = self.walks.reads[node.value, node.axes]
        column = self._column(access)
        place = f"p{access}{f' + {column}' if column else ''}"
        text = f"tl.load({place}{self._mask(access)})"
        self._emit(node, f"{name} = {text}{'.to(tl.float32)' if dtype in HALVES else ''}")
        return name

    def _rounded(self, node: Node) -> str:
        raw, dtype = self.raw(node), node.value.dtype
        if dtype not in HALVES or isinstance(node.op, Copy):
            return raw
        name = self._name(node)
        self._emit(node, f"{name} = {round_to(raw, dtype)}")
        return name

    def raw(self, node: Node) -> str:
        """The value of a node before it is rounded to its type: what a store may round itself."""
        op, dtype = node.op, node.value.dtype
        if op is None or isinstance(op, Full):
            return self.term(node).text
        if isinstance(op, Copy):
            return self.term(node.inputs[0]).text
        key = self._key(node, "raw")
        if key in self.known:
            return self.known[key]
        name = self.known[key] = self._name(node, "u" if dtype in HALVES else "v")
        if node.is_reduction:
            lines, text = unrolled(node, self._every_step(node.inputs[0]), name)
            self._emit(node, *lines)
        elif isinstance(op, Iota):
            text = self._count(node, op)
        else:
            text = expression(op, [self.term(n) for n in node.inputs], dtype)
        self._emit(node, f"{name} = {text}")
        return name

    def _every_step(self, node: Node) -> list[Term]:
        """The values of a reduction's operand at all of its steps."""
        found: list[Term] = []
        for step in range(self.walks.few):
            self.step = step
            found.append(self.term(node))
        self.step = 0
        return found

    def _count(self, node: Node, op: Iota) -> str:
        access = self.walks.counts[node]
        column = self._column(access)
        index = widened(f"k{access}{f' + {column}' if column else ''}")
        name = self._name(node, "n")
        self._emit(node, f"{name} = {index}")
        wide = DType.F64 if op.dtype.is_float else DType.I64
        start, step = (
            convert(widened(self.places.number(f"{word}{self.order[node]}", v)), DType.I64, wide)
            if isinstance(v, sympy.Expr)
            else literal(v, wide)
            for word, v in (("start", op.start), ("step", op.step))
        )
        value = f"{convert(name, DType.I64, wide)} * {step} + {start}"
        return convert(f"({value})", wide, DType.F32 if op.dtype in HALVES else op.dtype)

    def _store(self, i: int) -> tuple[str, bool]:
        """The store of a result, and whether there is one for each element of a row."""
        node = self.walks.region.results[i]
        access = self.walks.first_write + i
        along = self.walks.few or not self.walks.region.reduced
        column = self._column(access)
        place = f"p{access}{f' + {column}' if column else ''}"
        dtype = node.value.dtype
        value = to_store(self.raw(node), dtype, dtype)
        text = f"tl.store({place}, {value}{self._mask(access)})"
        return text, bool(along) or bool(column)

    def _reduce(self, node: Node) -> Loop:
        """The loop of one reduction; afterwards its value is one of the row."""
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
        self.inside = []
        if self.places.tile.looped:
            self.known = {k: v for k, v in self.known.items() if not self.varies[k[0]]}
        self.known |= {self._key(node, "rounded"): name, self._key(node, "raw"): name}
        return Loop(tuple(before), tuple(body), tuple(after))


def _constant(node: Node) -> bool | int | float | None:
    """The value of a constant as its type holds it; None for what is known only later."""
    op = node.op
    if not isinstance(op, Full) or isinstance(op.value, sympy.Expr):
        return None
    return torch.full((), op.value, dtype=op.dtype.torch).item()


__all__ = ["Writer"]
