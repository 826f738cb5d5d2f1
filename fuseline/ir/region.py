"""What a region of element-wise ops computes at one point of its iteration space.

The body of a `pointwise` op is a func over tensors. Seen from one point of the space that it
iterates over, every value is a scalar, and a view is nothing but another choice of which axes of
the space the dims of a value follow. `analyse` works that choice out, from the results back to the
operands; a body for which there is none is no region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from fuseline.ir.core import Func, IRError, Op, Trait, Value
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy
from fuseline.ir.ops.reduce import All, Amax, Amin, Any, Mean, Reduce, Sum
from fuseline.ir.ops.view import Expand, Permute, Reshape
from fuseline.ir.types import Dim

Axes: TypeAlias = tuple[int, ...]
"""For each dim of a value, the axis of the space that it follows; -1 where its extent is 1."""

REDUCTIONS = (Sum, Mean, Amax, Amin, Any, All)


class RegionError(IRError):
    """A body that cannot be computed point by point; the message says why."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value as seen from a point of the space.

    ``op`` is None for an argument of the body; views have no nodes of their own.
    """

    value: Value
    axes: Axes
    op: Op | None = None
    inputs: tuple[Node, ...] = ()

    @property
    def is_reduction(self) -> bool:
        """Whether the value is a reduction over the reduced axes."""
        return isinstance(self.op, REDUCTIONS)


@dataclass(frozen=True)
class Region:
    """A body seen point by point.

    Attributes:
        space: extents of the iteration space.
        reduced: the axes that reductions run over, none where there is no reduction.
        nodes: every node, operands first.
        results: one node for each return of the body.
        result_axes: the axes that the dims of each return follow.
    """

    space: tuple[Dim, ...]
    reduced: tuple[int, ...]
    nodes: tuple[Node, ...]
    results: tuple[Node, ...]
    result_axes: tuple[Axes, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """The axes that no reduction runs over."""
        return tuple(a for a in range(len(self.space)) if a not in self.reduced)


def is_pointwise(op: Op) -> bool:
    """Whether an op may be part of a region as a computation (views and reductions aside)."""
    return op.has(Trait.POINTWISE) or isinstance(op, (Full, Iota, Copy))


def analyse(body: Func) -> Region:
    """See a body point by point.

    Raises:
        RegionError: the body has another op, reductions over different axes, results of different
            shapes, or a reshape that is more than adding and removing dims of 1.

    """
    if not body.returns:
        raise RegionError("the body returns nothing")
    space, reduced = _space(body)
    walk = _Walk(space, reduced)
    axes = tuple(walk.result_axes(v) for v in body.returns)
    results = tuple(walk.visit(v, a) for v, a in zip(body.returns, axes, strict=True))
    return Region(space, reduced, tuple(walk.nodes.values()), results, axes)


def _space(body: Func) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
    """The extents of the space, and the axes that are reduced."""
    reductions = [op for op in body.ops if isinstance(op, REDUCTIONS)]
    if not reductions:
        return body.returns[0].shape, ()
    first = reductions[0]
    for op in reductions:
        if not op.axes:
            raise RegionError(f"{op.name} over no axes")
        if (op.x.shape, set(op.axes)) != (first.x.shape, set(first.axes)):
            raise RegionError(f"{first.name} and {op.name} run over different axes or shapes")
    return first.x.shape, tuple(sorted(first.axes))


@dataclass
class _Walk:
    space: tuple[Dim, ...]
    reduced: tuple[int, ...]
    nodes: dict[tuple[Value, Axes], Node] = field(default_factory=dict[tuple[Value, Axes], Node])

    def result_axes(self, value: Value) -> Axes:
        """The axes that the dims of a result follow: all of them, or those that are kept."""
        kept = [a for a in range(len(self.space)) if a not in self.reduced]
        shape = value.shape
        if self.reduced and shape == tuple(self.space[a] for a in kept):
            return self.fit(value, tuple(kept))
        if len(shape) != len(self.space):
            raise RegionError(f"a result is {value.type}, the space has {len(self.space)} axes")
        for axis in kept:
            if (shape[axis],) != (self.space[axis],):
                raise RegionError(f"a result is {value.type}, not of the space's {self.space}")
        return self.fit(value, tuple(range(len(shape))))

    def fit(self, value: Value, axes: Axes) -> Axes:
        """Drop the axes that dims of extent 1 follow; other extents must be those of the space."""
        found: list[int] = []
        for extent, axis in zip(value.shape, axes, strict=True):
            if extent != 1 and (axis < 0 or (extent,) != (self.space[axis],)):
                raise RegionError(f"{value.type} does not follow the space {self.space}")
            found.append(-1 if extent == 1 else axis)
        return tuple(found)

    def visit(self, value: Value, axes: Axes) -> Node:
        """The node of a value whose dims follow ``axes``."""
        found = self.nodes.get((value, axes))
        if found is not None:
            return found
        op = value.owner
        match op:
            case Reshape(x):
                return self.visit(x, self.fit(x, _unsqueezed(x.shape, value.shape, axes)))
            case Permute(x, dims=dims):
                return self.visit(x, tuple(axes[dims.index(i)] for i in range(len(dims))))
            case Expand(x):
                return self.visit(x, _broadcast(x.shape, axes))
            case None:
                node = Node(value, axes)
            case _:
                node = Node(value, axes, op, self.inputs(op, axes))
        self.nodes[value, axes] = node
        return node

    def inputs(self, op: Op, axes: Axes) -> tuple[Node, ...]:
        if isinstance(op, REDUCTIONS):
            return (self.visit(op.x, self.reduction_axes(op, axes)),)
        if not is_pointwise(op):
            raise RegionError(f"{op.name} is not element-wise")
        return tuple(self.visit(v, _broadcast(v.shape, axes)) for v in op.operands)

    def reduction_axes(self, op: Reduce, axes: Axes) -> Axes:
        """The operand of a reduction follows the space itself; its result must fit to that."""
        own = self.fit(op.x, tuple(range(len(self.space))))
        kept = [-1 if a in op.axes else own[a] for a in range(len(own))]
        if not op.keepdim:
            kept = [own[a] for a in range(len(own)) if a not in op.axes]
        if tuple(kept) != axes:
            raise RegionError(f"the result of {op.name} is not read along the rows it comes from")
        return own


def _broadcast(shape: Sequence[Dim], axes: Axes) -> Axes:
    """The axes of an operand that broadcasts against a result with ``axes``."""
    lead = len(axes) - len(shape)
    return tuple(-1 if e == 1 else axes[i + lead] for i, e in enumerate(shape))


def _unsqueezed(source: Sequence[Dim], shape: Sequence[Dim], axes: Axes) -> Axes:
    """The axes of what was reshaped, where only dims of 1 were added or removed."""
    wide = [(e, a) for e, a in zip(shape, axes, strict=True) if e != 1]
    if [e for e in source if e != 1] != [e for e, _ in wide]:
        raise RegionError(f"a reshape of {list(source)} to {list(shape)} does more than add dims")
    rest = iter(a for _, a in wide)
    return tuple(-1 if e == 1 else next(rest) for e in source)


def as_body(op: Op) -> Func:
    """A single op as the body of a region."""
    body = Func("body")
    mapping: dict[Value, Value] = {}
    for value in op.operands:
        if value not in mapping:
            mapping[value] = body.add_arg(value.tensor, value.hint)
    copy = body.append(op.clone(mapping))
    body.set_returns(copy.results)
    return body


__all__ = [
    "REDUCTIONS",
    "Axes",
    "Node",
    "Region",
    "RegionError",
    "analyse",
    "as_body",
    "is_pointwise",
]
