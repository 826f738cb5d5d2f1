"""Writes the C++ statements of a region: those of a row, and those of its elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import sympy
import torch

from fuseline.codegen.cpu.pointwise import Loop
from fuseline.codegen.cpu.reduction import reduction, unrolled
from fuseline.codegen.cpu.scalar import COMPUTE, HALVES, Term, expression, literal, round_to
from fuseline.codegen.walks import Walks
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy
from fuseline.ir.region import Node
from fuseline.ir.types import Dim


@dataclass
class Writer:
    """Writes the statements of rows and of their elements.

    ``scalar`` gives the C++ of a run-time integer that the region computes with. Where a few
    elements are reduced for each element of the row, ``step`` says which of them is being written;
    what depends on it is written for each.
    """

    plan: Walks
    scalar: Callable[[sympy.Expr], str]
    step: int = 0
    known: dict[tuple[Node, str, int], str] = field(
        default_factory=dict[tuple[Node, str, int], str]
    )
    before: list[str] = field(default_factory=list[str])
    inside: list[str] = field(default_factory=list[str])
    number: dict[Node, int] = field(default_factory=dict[Node, int])
    varies: dict[Node, bool] = field(default_factory=dict[Node, bool])
    stepped: dict[Node, bool] = field(default_factory=dict[Node, bool])

    def write(self) -> tuple[tuple[Loop, ...], tuple[str, ...]]:
        """The loops of a row, and the statements behind them."""
        region, inner, steps = self.plan.region, self.inner, self.plan.steps
        for i, node in enumerate(region.nodes):
            self.number[node] = i
            self.varies[node] = self.plan.varies(node, inner, self.varies)
            self.stepped[node] = bool(steps) and self.plan.varies(node, steps, self.stepped)
        loops = [self._reduce(n) for n in region.nodes if n.is_reduction and not self.plan.few]
        stores = [self._store(i) for i in range(len(region.results))]
        elements = [text for text, by_element in stores if by_element]
        rows = [text for text, by_element in stores if not by_element]
        if elements:
            loops.append(Loop(tuple(self.before), (*self.inside, *elements)))
            self.before = []
        return tuple(loops), (*self.before, *rows)

    @property
    def inner(self) -> Sequence[Dim]:
        """The strides of every access along the row."""
        return self.plan.inner.strides

    def _index(self, access: int) -> str:
        stride = self.inner[access]
        text = "0" if stride == 0 else "j" if stride == 1 else f"j * s{access}"
        stepped = bool(self.plan.steps) and self.plan.steps[access] != 0
        return f"{text} + {self.step} * r{access}" if stepped and self.step else text

    def _key(self, node: Node, kind: str) -> tuple[Node, str, int]:
        return (node, kind, self.step if self.stepped[node] else -1)

    def _name(self, node: Node, letter: str = "v") -> str:
        suffix = f"_{self.step}" if self.stepped[node] else ""
        return f"{letter}{self.number[node]}{suffix}"

    def _emit(self, node: Node, kind: str, name: str, text: str) -> None:
        (self.inside if self.varies[node] else self.before).append(f"const {kind} {name} = {text};")

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
        if constant is not None:
            return literal(constant, node.value.dtype)
        name = self._name(node)
        if isinstance(node.op, Full):
            assert isinstance(node.op.value, sympy.Expr), "other values are constants"
            runtime = self.scalar(node.op.value)
            text = f"({COMPUTE[node.value.dtype]}){runtime}"
            self._emit(node, "auto", name, round_to(text, node.value.dtype))
            return name
        access = self.plan.reads[node.value, node.axes]
        self._emit(node, "auto", name, f"fl_read(p{access} + {self._index(access)})")
        return name

    def _rounded(self, node: Node) -> str:
        raw, dtype = self.raw(node), node.value.dtype
        if dtype not in HALVES or isinstance(node.op, Copy):
            return raw
        name = self._name(node)
        self._emit(node, "float", name, round_to(raw, dtype))
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
            text = unrolled(node, self._every_step(node.inputs[0]))
        elif isinstance(op, Iota):
            text = self._count(node, op)
        else:
            text = expression(op, [self.term(n) for n in node.inputs], dtype)
        self._emit(node, COMPUTE[dtype], name, text)
        return name

    def _every_step(self, node: Node) -> list[str]:
        """The values of a reduction's operand at all of its steps."""
        found: list[str] = []
        for step in range(self.plan.few):
            self.step = step
            found.append(self.term(node).text)
        self.step = 0
        return found

    def _count(self, node: Node, op: Iota) -> str:
        access = self.plan.counts[node]
        index = f"(k{access} + {self._index(access)})"
        start, step = (
            self.scalar(v) if isinstance(v, sympy.Expr) else repr(v) for v in (op.start, op.step)
        )
        if not op.dtype.is_float:
            return f"({COMPUTE[op.dtype]})({index} * {step} + {start})"
        return f"({COMPUTE[op.dtype]})((double){index} * {step} + {start})"

    def _store(self, i: int) -> tuple[str, bool]:
        """The store of a result, and whether there is one for each element of a row."""
        node = self.plan.region.results[i]
        access = self.plan.first_write + i
        along = self.plan.few or not self.plan.region.reduced
        by_element = bool(along) or self.inner[access] != 0
        text = f"fl_write(p{access} + {self._index(access)}, {self.raw(node)});"
        return text, by_element

    def _reduce(self, node: Node) -> Loop:
        """The loop of one reduction; afterwards its value is one of the row."""
        x = self.term(node.inputs[0])
        i, name = self.number[node], f"v{self.number[node]}"
        parts = reduction(node, x, i)
        body = (*self.inside, parts.step)
        loop = replace(parts.loop, before=tuple(self.before), body=body)
        result = round_to(parts.result, node.value.dtype)
        self.before = [f"const {COMPUTE[node.value.dtype]} {name} = {result};"]
        self.inside = []
        self.known = {k: v for k, v in self.known.items() if not self.varies[k[0]]}
        self.known |= {self._key(node, "rounded"): name, self._key(node, "raw"): name}
        return loop


def _constant(node: Node) -> bool | int | float | None:
    """The value of a constant as its type holds it; None for what is known only later."""
    op = node.op
    if not isinstance(op, Full) or isinstance(op.value, sympy.Expr):
        return None
    return torch.full((), op.value, dtype=op.dtype.torch).item()
