"""Where an element of a view comes from: the index arithmetic of reshapes, slices and gathers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, cast

import sympy

from fuseline.ir.core import Op, Value
from fuseline.ir.ops import index, view
from fuseline.ir.types import Dim, dim
from fuseline.passes.masks.bounds import Bounds, quotient
from fuseline.passes.masks.expressions import Opaque
from fuseline.passes.masks.integers import ZERO, Linear, of_dim

Place: TypeAlias = "tuple[Linear, ...]"
"""An index expression for each dim of a value."""

IndexElement: TypeAlias = "Callable[[Value, Place, Linear], Linear]"


def source_place(op: Op, place: Place, element: IndexElement, bounds: Bounds) -> Place:
    """The place in the first operand of a view, or of a gather, that an element comes from.

    ``element`` gives the element of an index tensor, within the extent that it indexes.

    Raises:
        Opaque: the place is not an index expression.

    """
    match op:
        case view.Reshape(x):
            return _reshape(x.shape, op.y.shape, place, bounds)
        case view.Permute(x):
            source = dict(zip(op.dims, place, strict=True))
            return tuple(source[d] for d in range(len(x.shape)))
        case view.Expand(x):
            return place[len(place) - len(x.shape) :]
        case view.Slice():
            along = place[op.axis].times(op.step) + of_dim(op.start)
            return (*place[: op.axis], along, *place[op.axis + 1 :])
        case index.IndexSelect(x, which):
            along = element(which, place[op.axis : op.axis + 1], of_dim(x.shape[op.axis]))
            return (*place[: op.axis], along, *place[op.axis + 1 :])
        case index.Index():
            return _gather(op, place, element)
        case _:
            raise Opaque


def _gather(op: index.Index, place: Place, element: IndexElement) -> Place:
    rank = len(op.x.shape)
    width = len(op.y.shape) - rank + len(op.axes)
    adjacent = op.axes == tuple(range(op.axes[0], op.axes[0] + len(op.axes)))
    start = op.axes[0] if adjacent else 0
    selected, rest = place[start : start + width], iter((*place[:start], *place[start + width :]))
    by_axis = {
        axis: element(which, selected[width - len(which.shape) :], of_dim(op.x.shape[axis]))
        for axis, which in zip(op.axes, op.indices, strict=True)
    }
    return tuple(by_axis[axis] if axis in by_axis else next(rest) for axis in range(rank))


def _reshape(source: Sequence[Dim], target: Sequence[Dim], place: Place, bounds: Bounds) -> Place:
    """Dims other than 1 are paired in groups of as many elements, each one flattened and split."""
    found = [ZERO] * len(source)
    left = [(axis, extent) for axis, extent in enumerate(source) if extent != 1]
    right = [(i, extent) for i, extent in zip(place, target, strict=True) if extent != 1]
    while left and right:
        axes, inside = _group(left, right)
        flat = _flatten(inside)
        for axis, extent in reversed(axes[1:]):
            by = _whole(extent)
            above = quotient(flat, by, bounds)
            found[axis], flat = flat - above.times(by), above
        found[axes[0][0]] = flat
    if left or right:
        raise Opaque
    return tuple(found)


def _flatten(inside: Sequence[tuple[Linear, Dim]]) -> Linear:
    flat = inside[0][0]
    for i, extent in inside[1:]:
        flat = i if flat == ZERO else flat.times(_whole(extent)) + i
    return flat


def _whole(extent: Dim) -> int:
    if not isinstance(extent, int) or extent < 1:
        raise Opaque
    return extent


def _group(
    left: list[tuple[int, Dim]], right: list[tuple[Linear, Dim]]
) -> tuple[list[tuple[int, Dim]], list[tuple[Linear, Dim]]]:
    """Take dims off the front of both lists until both have taken as many elements."""
    axes, inside = [left.pop(0)], [right.pop(0)]
    have, want = axes[0][1], inside[0][1]
    while have != want:
        grow = _smaller(have, want)
        if grow == "left" and left:
            axes.append(left.pop(0))
            have = dim(cast("Any", have) * axes[-1][1])
        elif grow == "right" and right:
            inside.append(right.pop(0))
            want = dim(cast("Any", want) * inside[-1][1])
        else:
            raise Opaque
    return axes, inside


@lru_cache(maxsize=1024)
def _smaller(have: Dim, want: Dim) -> str:
    """The side that divides the other, and must take more; empty where neither does."""
    if isinstance(have, int) and isinstance(want, int):
        return "left" if have < want else "right"
    ratio: Any = cast("Any", sympy).cancel(sympy.sympify(want) / sympy.sympify(have))
    above, below = ratio.as_numer_denom()
    if below == 1:
        return "left"
    return "right" if above == 1 else ""
