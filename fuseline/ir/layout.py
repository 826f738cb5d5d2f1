"""Where the elements of a value lie: offset and strides on the buffer of a root value.

View ops cost nothing where their result can be expressed as another layout of the same root. A
layout counts elements of the value's own type; offsets and strides are dims.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.buffer import Read
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.raised import Attention
from fuseline.ir.ops.view import Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, dim, product, same


@dataclass(frozen=True)
class Layout:
    """Offset and strides, in elements, one stride a dim."""

    offset: Dim
    strides: tuple[Dim, ...]

    def is_dense(self, shape: Sequence[Dim]) -> bool:
        """Whether the elements lie one behind the other in row-major order."""
        return _collapses(shape, self.strides) and _last_stride(shape, self.strides) in (1, None)

    def is_inner_dense(self, shape: Sequence[Dim]) -> bool:
        """Whether the elements of the last dim lie side by side."""
        return not shape or same(shape[-1], 1) or same(self.strides[-1], 1)

    def row_stride(self, shape: Sequence[Dim]) -> Dim | None:
        """The one distance between rows (all dims but the last); None where there is none.

        A single row has its own width as the distance.
        """
        if not self.is_inner_dense(shape):
            return None
        if not _collapses(shape[:-1], self.strides[:-1]):
            return None
        stride = _last_stride(shape[:-1], self.strides[:-1])
        return shape[-1] if stride is None else stride

    def shifted(self, by: Dim) -> Layout:
        """The same strides from a later element on."""
        return Layout(dim(self.offset + by), self.strides)


def dense(shape: Sequence[Dim]) -> Layout:
    """The row-major layout of a shape."""
    strides: list[Dim] = []
    step: Dim = 1
    for extent in reversed(shape):
        strides.append(step)
        step = dim(step * extent)
    return Layout(0, tuple(reversed(strides)))


def _wide(shape: Sequence[Dim], strides: Sequence[Dim]) -> list[tuple[Dim, Dim]]:
    """The (extent, stride) pairs that matter: an extent of 1 has no stride."""
    return [(e, s) for e, s in zip(shape, strides, strict=True) if e != 1]


def _collapses(shape: Sequence[Dim], strides: Sequence[Dim]) -> bool:
    """Whether the dims can be walked with one stride, the last one's."""
    pairs = _wide(shape, strides)
    return all(same(dim(e * s), outer) for (_, outer), (e, s) in itertools.pairwise(pairs))


def _last_stride(shape: Sequence[Dim], strides: Sequence[Dim]) -> Dim | None:
    pairs = _wide(shape, strides)
    return pairs[-1][1] if pairs else None


def reshape_layout(shape: Sequence[Dim], layout: Layout, target: Sequence[Dim]) -> Layout | None:
    """The layout of a reshape on the same buffer; None where it would need a copy.

    Both shapes are cut into the shortest groups of equal size; a group of source dims must
    collapse, and its target dims then divide its stride.
    """
    source = _wide(shape, layout.strides)
    wanted = [e for e in target if e != 1]
    strides: list[Dim] = []
    i = j = 0
    while i < len(source) and j < len(wanted):
        first_i, first_j = i, j
        have, want = source[i][0], wanted[j]
        i, j = i + 1, j + 1
        while have != want:
            if j < len(wanted) and (i >= len(source) or _smaller(want, have)):
                want, j = dim(want * wanted[j]), j + 1
            elif i < len(source):
                have, i = dim(have * source[i][0]), i + 1
            else:
                return None
        group = source[first_i:i]
        if not _collapses([e for e, _ in group], [s for _, s in group]):
            return None
        step = group[-1][1]
        inner: list[Dim] = []
        for extent in reversed(wanted[first_j:j]):
            inner.append(step)
            step = dim(step * extent)
        strides += reversed(inner)
    if i < len(source) or j < len(wanted):
        return None
    each = iter(strides)
    full = [next(each) if e != 1 else None for e in target]
    return Layout(layout.offset, _fill(target, full))


def _fill(target: Sequence[Dim], strides: Sequence[Dim | None]) -> tuple[Dim, ...]:
    """Give dims of extent 1 the stride that a dense neighbour would have."""
    filled: list[Dim] = []
    following: Dim = 1
    for extent, stride in zip(reversed(target), reversed(strides), strict=True):
        stride = following if stride is None else stride
        filled.append(stride)
        following = dim(stride * extent)
    return tuple(reversed(filled))


def _smaller(lhs: Dim, rhs: Dim) -> bool:
    """Whether lhs is a proper divisor of rhs, as far as can be told; decides which side grows."""
    if isinstance(lhs, int) and isinstance(rhs, int):
        return lhs < rhs
    quotient: Any = sympy.sympify(rhs) / sympy.sympify(lhs)
    return bool(quotient.is_polynomial())


@dataclass(frozen=True)
class Placed:
    """A value's place: the root that owns the memory, and the layout on it."""

    root: Value
    layout: Layout


class LayoutMap:
    """The places of all values of a func; views share their source's root where they can.

    ``askew`` are arguments whose memory may begin anywhere: parameters that are packed one behind
    the other. That of all other roots begins at a multiple of what a target reads at once. With
    ``batch_invariant`` an op is lowered to one form for all sizes.

    Args:
        func: the func.
        given: layouts of arguments, dense if not given; and of results of ops that own their
            memory, where those are to differ from what `result_layout` says.
    """

    def __init__(self, func: Func, given: Mapping[Value, Layout] | None = None) -> None:
        self.func = func
        self.places: dict[Value, Placed] = {}
        self.given = given or {}
        self.askew: frozenset[Value] = frozenset()
        self.batch_invariant = False
        for arg in func.args:
            if hasattr(arg.type, "value"):
                continue
            self.places[arg] = Placed(arg, self.given.get(arg, dense(arg.shape)))
        for op in func.ops:
            self.add(op)

    def __getitem__(self, value: Value) -> Placed:
        return self.places[value]

    def layout(self, value: Value) -> Layout:
        """The layout of a value."""
        return self.places[value].layout

    def root(self, value: Value) -> Value:
        """The value that owns the memory."""
        return self.places[value].root

    def is_view(self, op: Op) -> bool:
        """Whether the op does nothing at run time: its result lies in its operand's memory."""
        return len(op.results) == 1 and self.places[op.results[0]].root is not op.results[0]

    def add(self, op: Op) -> None:
        """Place the results of one more op."""
        aliased = self._alias(op)
        for value in op.results:
            own = self.given.get(value) or result_layout(op, value)
            self.places[value] = aliased or Placed(value, own)

    def _alias(self, op: Op) -> Placed | None:
        match op:
            case Read():
                return self.places[op.buffer]
            case Reshape() | Permute() | Expand() | Slice():
                source = self.places[op.x]
                layout = view_layout(op, source.layout)
                return None if layout is None else Placed(source.root, layout)
            case _:
                return None


def view_layout(op: Reshape | Permute | Expand | Slice, layout: Layout) -> Layout | None:
    """The layout of a view of a value that has this layout; None where it needs a copy."""
    match op:
        case Reshape():
            return reshape_layout(op.x.shape, layout, op.shape)
        case Permute():
            return Layout(layout.offset, tuple(layout.strides[d] for d in op.dims))
        case Expand():
            lead = len(op.shape) - op.x.tensor.rank
            strides: list[Dim] = [0] * lead
            for have, want, stride in zip(op.x.shape, op.shape[lead:], layout.strides, strict=True):
                # equal extents may be written differently
                strides.append(0 if (have,) == (1,) and (want,) != (1,) else stride)
            return Layout(layout.offset, tuple(strides))
        case Slice():
            stride = layout.strides[op.axis]
            strides = list(layout.strides)
            strides[op.axis] = dim(stride * op.step)
            return Layout(dim(layout.offset + op.start * stride), tuple(strides))


def result_layout(op: Op, value: Value) -> Layout:
    """How a kernel lays out its result: dense, but attention by token, as its readers want it."""
    if isinstance(op, (Attention, LatentAttention)):
        b, h, s, d = value.shape
        inner = dense((b, s, h, d)).strides
        return Layout(0, (inner[0], inner[2], inner[1], inner[3]))
    return dense(value.shape)


def extent_of(shape: Sequence[Dim], layout: Layout) -> Dim:
    """Elements from the first to behind the last one, with non-negative strides."""
    reach: Dim = 0
    for extent, stride in zip(shape, layout.strides, strict=True):
        reach = dim(reach + (extent - 1) * stride)
    return dim(reach + 1)


@dataclass(frozen=True)
class Rows:
    """Rows numbered ``o * inner + i``; each layout's row (o, i) begins at ``o * so + i * si``."""

    outer: Dim
    inner: Dim
    strides: tuple[tuple[Dim, Dim], ...]


def split_rows(shape: Sequence[Dim], layouts: Sequence[Layout]) -> Rows | None:
    """Walk all dims of ``shape`` but the last as two levels that suit every layout.

    None where some layout's rows need more levels, or are not dense inside.
    """
    if not all(layout.is_inner_dense(shape) for layout in layouts):
        return None
    lead = shape[:-1]
    for cut in range(len(lead) + 1):
        groups = [(layout.strides[:cut], layout.strides[cut:-1]) for layout in layouts]
        if all(_collapses(lead[:cut], a) and _collapses(lead[cut:], b) for a, b in groups):
            strides = tuple(
                (_last_stride(lead[:cut], a) or 0, _last_stride(lead[cut:], b) or 0)
                for a, b in groups
            )
            return Rows(product(lead[:cut]), product(lead[cut:]), strides)
    return None


__all__ = [
    "Layout",
    "LayoutMap",
    "Placed",
    "Rows",
    "dense",
    "extent_of",
    "reshape_layout",
    "result_layout",
    "split_rows",
    "view_layout",
]
