"""Cases of gathers and scatters, and of writes into buffers."""

from __future__ import annotations

from typing import Any

from fuseline.ir.core import Op, Value
from tests.ir.cases.base import ALL, EXTENTS, FLOATS, NUMBERS, Case, case


@case("embedding")
def _(c: Case, op: type[Any]) -> Op:
    rows = c.one_of(EXTENTS)
    weight = c.arg(c.one_of(FLOATS), [rows, c.one_of(EXTENTS)])
    return op(weight, c.indices(c.shape(), rows))


def _advanced(c: Case) -> tuple[Value, list[Value], tuple[int, ...], list[int]]:
    """x, indices for some of its axes, the axes, and the shape that they select."""
    sizes = c.shape(1, 4)
    axes = c.axes(len(sizes), at_least=1)
    selected = c.shape(0, 2)
    indices = [c.indices(selected, sizes[axis]) for axis in axes]
    rest = [s for a, s in enumerate(sizes) if a not in axes]
    place = axes[0] if axes == tuple(range(axes[0], axes[0] + len(axes))) else 0
    return (
        c.arg(c.one_of(NUMBERS), sizes),
        indices,
        axes,
        [*rest[:place], *selected, *rest[place:]],
    )


@case("index")
def _(c: Case, op: type[Any]) -> Op:
    x, indices, axes, _ = _advanced(c)
    return op(x, indices, axes=axes)


@case("index_put")
def _(c: Case, op: type[Any]) -> Op:
    x, indices, axes, shape = _advanced(c)
    return op(x, indices, c.arg(x.dtype, shape), axes=axes, accumulate=c.flag())


@case("index_select")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    x = c.arg(c.one_of(ALL), sizes)
    return op(x, c.indices([c.one_of(EXTENTS)], sizes[axis]), axis=axis)


def _along(c: Case) -> tuple[list[int], int, list[int]]:
    """Sizes of x, an axis, and sizes of an index that is no larger off that axis."""
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    return sizes, axis, [c.number(1, s) for s in sizes]


@case("gather")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, inner = _along(c)
    return op(c.arg(c.one_of(ALL), sizes), c.indices(inner, sizes[axis]), axis=axis)


@case("scatter")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, inner = _along(c)
    x = c.arg(c.one_of(ALL), sizes)
    return op(x, c.indices(inner, sizes[axis]), c.arg(x.dtype, inner), axis=axis)


def _slices(c: Case) -> tuple[list[int], int, list[int]]:
    """Sizes of x, an axis, and sizes of a part of it along that axis."""
    sizes = c.shape(1)
    axis = c.number(0, len(sizes) - 1)
    return sizes, axis, [*sizes[:axis], c.number(1, sizes[axis]), *sizes[axis + 1 :]]


@case("index_copy")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    x = c.arg(c.one_of(ALL), sizes)
    return op(x, c.distinct(part[axis], sizes[axis]), c.arg(x.dtype, part), axis=axis)


@case("slice_scatter")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    x = c.arg(c.one_of(ALL), sizes)
    start = c.number(0, sizes[axis] - part[axis])
    return op(x, c.arg(x.dtype, part), axis=axis, start=start, stop=start + part[axis])


@case("read")
def _(c: Case, op: type[Any]) -> Op:
    return op(c.arg(c.one_of(ALL), c.shape(), buffer=True))


@case("write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(), c.one_of(ALL)
    return op(c.arg(dtype, sizes, buffer=True), c.arg(dtype, sizes))


def _origin(c: Case, sizes: list[int], axis: int, part: list[int]) -> tuple[int, ...]:
    """Where a part of the other dims begins; ``part`` gets its extents. Often all of them."""
    if c.flag():
        return ()
    for a, size in enumerate(sizes):
        part[a] = part[a] if a == axis else c.number(min(size, 1), size)
    return tuple(0 if a == axis else c.number(0, s - part[a]) for a, s in enumerate(sizes))


@case("index_write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    buffer = c.arg(c.one_of(ALL), sizes, buffer=True)
    index, origin = c.distinct(part[axis], sizes[axis]), _origin(c, sizes, axis, part)
    return op(buffer, index, c.arg(buffer.dtype, part), axis=axis, origin=origin)


@case("slice_write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    buffer = c.arg(c.one_of(ALL), sizes, buffer=True)
    start, origin = c.number(0, sizes[axis] - part[axis]), _origin(c, sizes, axis, part)
    src, stop = c.arg(buffer.dtype, part), start + part[axis]
    return op(buffer, src, axis=axis, start=start, stop=stop, origin=origin)


@case("shift_write")
def _(c: Case, op: type[Any]) -> Op:
    sizes, axis, part = _slices(c)
    buffer = c.arg(c.one_of(ALL), sizes, buffer=True)
    return op(buffer, c.arg(buffer.dtype, part), axis=axis)
