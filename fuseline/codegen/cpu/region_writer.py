"""Writes the C++ statements of a region: those of a row, and those of its elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import sympy

from fuseline.codegen.cpu.pointwise import Loop
from fuseline.codegen.cpu.reduction import reduction, unrolled
from fuseline.codegen.cpu.scalar import COMPUTE, CPP, Term, round_to
from fuseline.codegen.region_writer import RegionWriter
from fuseline.ir.ops.create import Iota
from fuseline.ir.region import Node
from fuseline.ir.types import DType


@dataclass
class Writer(RegionWriter[Loop]):
    """Writes C++; ``scalar`` gives that of a run-time integer that the region computes with."""

    spelling = CPP

    scalar: Callable[[sympy.Expr], str]

    def loop(self, before: tuple[str, ...], body: tuple[str, ...]) -> Loop:
        """The loop over the elements of a row that reduces nothing."""
        return Loop(before, body)

    def _index(self, access: int) -> str:
        stride = self.walks.inner.strides[access]
        text = "0" if stride == 0 else "j" if stride == 1 else f"j * s{access}"
        stepped = bool(self.walks.steps) and self.walks.steps[access] != 0
        return f"{text} + {self.step} * r{access}" if stepped and self.step else text

    def definition(self, name: str, dtype: DType, text: str) -> str:
        """A constant of the type that the dtype is computed in."""
        return f"const {COMPUTE[dtype]} {name} = {text};"

    def read(self, node: Node, name: str) -> str:
        """A read, which converts to the type to compute in."""
        access = self.walks.reads[node.value, node.axes]
        return f"const auto {name} = fl_read(p{access} + {self._index(access)});"

    def number(self, node: Node, value: sympy.Expr, name: str) -> str:
        """A run-time integer as the dtype holds it."""
        text = f"({COMPUTE[node.value.dtype]}){self.scalar(value)}"
        return f"const auto {name} = {round_to(text, node.value.dtype)};"

    def unrolled(self, node: Node, terms: Sequence[Term], name: str) -> str:
        """One expression of all elements."""
        del name
        return unrolled(node, [term.text for term in terms])

    def count(self, node: Node, op: Iota) -> str:
        """Counted in 64 bits, floats in double."""
        access = self.walks.counts[node]
        index = f"(k{access} + {self._index(access)})"
        start, step = (
            self.scalar(v) if isinstance(v, sympy.Expr) else repr(v) for v in (op.start, op.step)
        )
        if not op.dtype.is_float:
            return f"({COMPUTE[op.dtype]})({index} * {step} + {start})"
        return f"({COMPUTE[op.dtype]})((double){index} * {step} + {start})"

    def store(self, i: int) -> tuple[str, bool]:
        """A write, which rounds."""
        node = self.walks.region.results[i]
        access = self.walks.first_write + i
        along = self.walks.few or not self.walks.region.reduced
        by_element = bool(along) or self.walks.inner.strides[access] != 0
        text = f"fl_write(p{access} + {self._index(access)}, {self.raw(node)});"
        return text, by_element

    def reduce(self, node: Node) -> Loop:
        """A loop that accumulates, and the statement behind it that gives the result its name."""
        x = self.term(node.inputs[0])
        i, name = self.order[node], f"v{self.order[node]}"
        parts = reduction(node, x, i)
        body = (*self.inside, parts.step)
        loop = replace(parts.loop, before=tuple(self.before), body=body)
        result = round_to(parts.result, node.value.dtype)
        self.before = [self.definition(name, node.value.dtype, result)]
        self.reduced(node, name, forget=True)
        return loop


__all__ = ["Writer"]
