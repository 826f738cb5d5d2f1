"""Writes the statements of a region, for any target: what is written once for a row and what for
each of its elements, in which order, and where values are rounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import sympy
import torch

from fuseline.codegen.scalars import HALVES, Spelling, Term
from fuseline.codegen.walks import Walks
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy
from fuseline.ir.region import Node
from fuseline.ir.types import DType

LoopT = TypeVar("LoopT")


@dataclass
class RegionWriter(ABC, Generic[LoopT]):
    """Writes the statements of rows and of their elements; a target says how each is spelled.

    Statements gather in ``before`` (once for a row) and ``inside`` (for each element), until a loop
    takes them. Where a few elements are reduced for each element of the row, ``step`` says which of
    them is being written; what depends on it is written for each.
    """

    spelling: ClassVar[Spelling]

    walks: Walks
    step: int = field(init=False, default=0)
    known: dict[tuple[Node, str, int], str] = field(
        init=False, default_factory=dict[tuple[Node, str, int], str]
    )
    before: list[str] = field(init=False, default_factory=list[str])
    inside: list[str] = field(init=False, default_factory=list[str])
    order: dict[Node, int] = field(init=False, default_factory=dict[Node, int])
    varies: dict[Node, bool] = field(init=False, default_factory=dict[Node, bool])
    stepped: dict[Node, bool] = field(init=False, default_factory=dict[Node, bool])

    def write(self) -> tuple[tuple[LoopT, ...], tuple[str, ...]]:
        """The loops of a row, and the statements behind them."""
        region, inner, steps = self.walks.region, self.walks.inner.strides, self.walks.steps
        for i, node in enumerate(region.nodes):
            self.order[node] = i
            self.varies[node] = self.walks.varies(node, inner, self.varies)
            self.stepped[node] = bool(steps) and self.walks.varies(node, steps, self.stepped)
        along = [n for n in region.nodes if n.is_reduction and not self.walks.few]
        loops = [self.reduce(node) for node in along]
        stores = [self.store(i) for i in range(len(region.results))]
        elements = [text for text, by_element in stores if by_element]
        rows = [text for text, by_element in stores if not by_element]
        if elements:
            loops.append(self.loop(tuple(self.before), (*self.inside, *elements)))
            self.before = []
        return tuple(loops), (*self.before, *rows)

    # -- what a target spells ---------------------------------------------------------------

    @abstractmethod
    def loop(self, before: tuple[str, ...], body: tuple[str, ...]) -> LoopT:
        """The loop over the elements of a row that reduces nothing."""

    @abstractmethod
    def reduce(self, node: Node) -> LoopT:
        """The loop of one reduction; afterwards its value is one of the row."""

    @abstractmethod
    def store(self, i: int) -> tuple[str, bool]:
        """The store of a result, and whether there is one for each element of a row."""

    @abstractmethod
    def definition(self, name: str, dtype: DType, text: str) -> str:
        """A statement that gives a name to a value, as it is computed in a dtype."""

    @abstractmethod
    def read(self, node: Node, name: str) -> str:
        """A statement that gives a name to an element that is read."""

    @abstractmethod
    def number(self, node: Node, value: sympy.Expr, name: str) -> str:
        """A statement that gives a name to an integer that is known at run time."""

    @abstractmethod
    def count(self, node: Node, op: Iota) -> str:
        """The value of an element that counts."""

    @abstractmethod
    def unrolled(self, node: Node, terms: Sequence[Term], name: str) -> str:
        """The value of a reduction of a few elements."""

    # -- values -----------------------------------------------------------------------------

    def emit(self, node: Node, *lines: str) -> None:
        """Add statements that a node's value needs."""
        (self.inside if self.varies[node] else self.before).extend(lines)

    def key(self, node: Node, kind: str) -> tuple[Node, str, int]:
        """What a value is known by."""
        return (node, kind, self.step if self.stepped[node] else -1)

    def name(self, node: Node, letter: str = "v") -> str:
        """The name of a node's value."""
        suffix = f"_{self.step}" if self.stepped[node] else ""
        return f"{letter}{self.order[node]}{suffix}"

    def term(self, node: Node) -> Term:
        """The rounded value of a node, with the statements that give it."""
        constant = _constant(node)
        text = self.known.get(self.key(node, "rounded"))
        if text is None:
            leaf = node.op is None or isinstance(node.op, Full)
            text = self._leaf(node, constant) if leaf else self._rounded(node)
            self.known[self.key(node, "rounded")] = text
        return Term(text, node.value.tensor, constant)

    def _leaf(self, node: Node, constant: bool | int | float | None) -> str:
        if constant is not None:
            return self.spelling.literal(constant, node.value.dtype)
        name = self.name(node)
        if isinstance(node.op, Full):
            assert isinstance(node.op.value, sympy.Expr), "other values are constants"
            self.emit(node, self.number(node, node.op.value, name))
        else:
            self.emit(node, self.read(node, name))
        return name

    def _rounded(self, node: Node) -> str:
        raw, dtype = self.raw(node), node.value.dtype
        if dtype not in HALVES or isinstance(node.op, Copy):
            return raw
        name = self.name(node)
        self.emit(node, self.definition(name, dtype, self.spelling.round_to(raw, dtype)))
        return name

    def raw(self, node: Node) -> str:
        """The value of a node before it is rounded to its type: what a store may round itself."""
        op, dtype = node.op, node.value.dtype
        if op is None or isinstance(op, Full):
            return self.term(node).text
        if isinstance(op, Copy):
            return self.term(node.inputs[0]).text
        key = self.key(node, "raw")
        if key in self.known:
            return self.known[key]
        name = self.known[key] = self.name(node, "u" if dtype in HALVES else "v")
        if node.is_reduction:
            text = self.unrolled(node, self._every_step(node.inputs[0]), name)
        elif isinstance(op, Iota):
            text = self.count(node, op)
        else:
            text = self.spelling.expression(op, [self.term(n) for n in node.inputs], dtype)
        self.emit(node, self.definition(name, dtype, text))
        return name

    def _every_step(self, node: Node) -> list[Term]:
        """The values of a reduction's operand at all of its steps."""
        found: list[Term] = []
        for step in range(self.walks.few):
            self.step = step
            found.append(self.term(node))
        self.step = 0
        return found

    def reduced(self, node: Node, name: str, *, forget: bool) -> None:
        """Note that a reduction is done; ``forget`` what was known of elements of its loop."""
        self.inside = []
        if forget:
            self.known = {k: v for k, v in self.known.items() if not self.varies[k[0]]}
        self.known |= {self.key(node, "rounded"): name, self.key(node, "raw"): name}


def _constant(node: Node) -> bool | int | float | None:
    """The value of a constant as its type holds it; None for what is known only later."""
    op = node.op
    if not isinstance(op, Full) or isinstance(op.value, sympy.Expr):
        return None
    return torch.full((), op.value, dtype=op.dtype.torch).item()


__all__ = ["RegionWriter"]
