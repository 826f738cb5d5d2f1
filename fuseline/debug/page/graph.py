"""A func as a graph: an op is a node, and weights and other arguments are named by its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fuseline.debug.page.data import GraphView, NodeView
from fuseline.debug.page.layout import placed
from fuseline.debug.page.texts import Lines, first_lines, lines_of
from fuseline.ir.core import Func, Op
from fuseline.ir.ops.call import called

Amounts = Callable[[Op], tuple[int, int]]
"""Bytes and flops of an op."""


@dataclass(frozen=True)
class Drawn:
    """A graph, and the op of each of its nodes."""

    view: GraphView
    ops: tuple[Op, ...]

    def coloured(self, groups: Mapping[Op, int]) -> Drawn:
        """The same with the number of each op's group."""
        nodes = zip(self.view.nodes, self.ops, strict=True)
        found = tuple(replace(node, group=groups.get(op, -1)) for node, op in nodes)
        return replace(self, view=replace(self.view, nodes=found))

    def run_by(self, pieces: Mapping[Op, int], kernels: Mapping[Op, Sequence[str]]) -> Drawn:
        """The same with the piece that each op runs in, and the kernels that do it."""
        nodes = zip(self.view.nodes, self.ops, strict=True)
        found = tuple(
            replace(node, piece=pieces.get(op, -1), kernels=tuple(kernels.get(op, ())))
            for node, op in nodes
        )
        return replace(self, view=replace(self.view, nodes=found))


def drawn(func: Func, title: str, lines: Lines, amounts: Amounts) -> Drawn:
    """The graph of a func as it is now."""
    ops = tuple(func.ops)
    number = {op: i for i, op in enumerate(ops)}
    owners = [dict.fromkeys(v.owner for v in op.operands if v.owner is not None) for op in ops]
    reads = [[number[owner] for owner in each] for each in owners]
    texts = lines_of(func)
    numbers = lines.of(texts)
    places = placed(reads)
    nodes = [
        _node(op, numbers[line], amounts(op), place)
        for op, line, place in zip(ops, first_lines(texts), places, strict=True)
    ]
    edges = tuple((source, i) for i, sources in enumerate(reads) for source in sources)
    return Drawn(GraphView(title, tuple(nodes), edges), ops)


def _node(op: Op, text: int, amount: tuple[int, int], place: tuple[int, int]) -> NodeView:
    return NodeView(
        op=called(op),
        text=text,
        module=op.loc.module if op.loc is not None else "",
        source=tuple(dict.fromkeys(at.source for at in op.sources if at.source)),
        bytes=amount[0],
        flops=amount[1],
        group=-1,
        piece=-1,
        kernels=(),
        x=float(place[0]),
        y=place[1],
    )


__all__ = ["Amounts", "Drawn", "drawn"]
