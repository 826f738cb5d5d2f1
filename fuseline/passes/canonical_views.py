"""Views in one form: compositions joined, views that change nothing dropped."""

from __future__ import annotations

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.index import IndexPut, SliceScatter
from fuseline.ir.ops.pointwise import Binary, Where
from fuseline.ir.ops.reduce import Reduce
from fuseline.ir.ops.view import Concat, Expand, Pad, Permute, Reshape, Slice
from fuseline.ir.types import Dim, broadcast, dim
from fuseline.passes.constants import number
from fuseline.passes.sweep import Rules

RULES = Rules()


@RULES.rule(Reshape)
def simplify_reshape(op: Reshape) -> Value | None:
    """A reshape to the same shape is its operand; one of a reshape reshapes the source."""
    if op.shape == op.x.shape:
        return op.x
    inner = op.x.owner
    return Reshape(inner.x, shape=op.shape).y if isinstance(inner, Reshape) else None


@RULES.rule(Reshape)
def keep_reduced_dims(op: Reshape) -> Value | None:
    """A reduction whose dims a reshape puts back as 1 keeps them itself."""
    inner = op.x.owner
    if not isinstance(inner, Reduce) or inner.keepdim:
        return None
    kept = tuple(1 if a in inner.axes else e for a, e in enumerate(inner.x.shape))
    return type(inner)(inner.x, axes=inner.axes, keepdim=True).y if op.shape == kept else None


@RULES.rule(Reshape)
def take_every_other(op: Reshape) -> Value | None:
    """One of the pairs that the last dim was split into: every other element of it."""
    part = op.x.owner
    split = part.x.owner if isinstance(part, Slice) else None
    if not isinstance(part, Slice) or not isinstance(split, Reshape) or len(split.shape) < 2:
        return None
    *lead, rows, count = split.shape
    if part.axis != len(split.shape) - 1 or part.y.shape[-1] != 1:
        return None
    if not isinstance(rows, int) or not isinstance(count, int) or not isinstance(part.start, int):
        return None
    if op.shape != (*lead, rows):
        return None
    whole = Reshape(split.x, shape=(*lead, rows * count)).y
    stop = part.start + (rows - 1) * count + 1
    return Slice(whole, axis=len(lead), start=part.start, stop=stop, step=count).y


@RULES.rule(Reshape)
def move_no_ones(op: Reshape) -> Value | None:
    """Dims of 1 that are put in, moved and taken out again, as einsum does, are not needed."""
    moved = op.x.owner
    split = moved.x.owner if isinstance(moved, Permute) else None
    if not isinstance(moved, Permute) or not isinstance(split, Reshape):
        return None
    order = [d for d in moved.dims if split.shape[d] != 1]
    if order == sorted(order):
        return Reshape(split.x, shape=op.shape).y
    wide = [d for d, extent in enumerate(split.shape) if extent != 1]
    source = [d for d, extent in enumerate(split.x.shape) if extent != 1]
    if [split.shape[d] for d in wide] != [split.x.shape[d] for d in source]:
        return None
    ones = tuple(d for d, extent in enumerate(split.x.shape) if extent == 1)
    dims = (*ones, *(source[wide.index(d)] for d in order))
    return Reshape(Permute(split.x, dims=dims).y, shape=op.shape).y


@RULES.rule(Permute)
def simplify_permute(op: Permute) -> Value | None:
    """The identity is its operand; a permute of a permute is their composition."""
    if op.dims == tuple(range(len(op.dims))):
        return op.x
    inner = op.x.owner
    if not isinstance(inner, Permute):
        return None
    return Permute(inner.x, dims=tuple(inner.dims[d] for d in op.dims)).y


@RULES.rule(Expand)
def simplify_expand(op: Expand) -> Value | None:
    """An expand to the same shape is its operand; one of an expand expands the source."""
    if op.shape == op.x.shape:
        return op.x
    inner = op.x.owner
    return Expand(inner.x, shape=op.shape).y if isinstance(inner, Expand) else None


@RULES.rule(Slice)
def simplify_slice(op: Slice) -> Value | None:
    """A slice of everything is its operand; one of a slice along the same axis starts later."""
    if op.start == 0 and op.step == 1 and op.stop == op.x.shape[op.axis]:
        return op.x
    inner = op.x.owner
    if not isinstance(inner, Slice) or inner.axis != op.axis or inner.step != 1:
        return None
    start, stop = dim(inner.start + op.start), dim(inner.start + op.stop)
    return Slice(inner.x, axis=op.axis, start=start, stop=stop, step=op.step).y


@RULES.rule(Concat)
def drop_empty_operands(op: Concat) -> Value | None:
    """Operands without elements go, and a single operand is its own concatenation."""
    xs = tuple(x for x in op.xs if x.shape[op.axis] != 0)
    if len(xs) == 1:
        return xs[0]
    return Concat(xs, axis=op.axis).y if xs and len(xs) < len(op.xs) else None


@RULES.rule(Pad)
def drop_empty_pad(op: Pad) -> Value | None:
    """A pad by nothing is its operand."""
    return op.x if op.before == 0 and op.after == 0 else None


@RULES.rule(SliceScatter)
def simplify_slice_scatter(op: SliceScatter) -> Value | None:
    """Replacing everything gives the source; replacing part of a slice of x replaces part of x."""
    if op.start == 0 and op.step == 1 and op.stop == op.x.shape[op.axis]:
        return op.src if op.src.dtype is op.x.dtype else None
    inner = op.src.owner
    if not isinstance(inner, SliceScatter) or inner.axis != op.axis or inner.step != 1:
        return None
    part = inner.x.owner
    if not isinstance(part, Slice) or part.x is not op.x or op.step != 1 or part.step != 1:
        return None
    if (part.axis, part.start, part.stop) != (op.axis, op.start, op.stop):
        return None
    start, stop = dim(op.start + inner.start), dim(op.start + inner.stop)
    return SliceScatter(op.x, inner.src, axis=op.axis, start=start, stop=stop).y


@RULES.rule(SliceScatter)
def join_slice_scatters(op: SliceScatter) -> Value | None:
    """Replacing all of a tensor slice by slice is a concatenation; models fill ``empty`` so."""
    slices: dict[Dim, SliceScatter] = {}
    inner: Op | None = op
    while isinstance(inner, SliceScatter) and inner.axis == op.axis and inner.step == 1:
        later = slices.setdefault(inner.start, inner)
        if later.stop != inner.stop:
            return None  # covered by a later one in part, if at all
        inner = inner.x.owner
    place: Dim = 0
    parts: list[Value] = []
    while place in slices and place != op.y.shape[op.axis]:
        part = slices[place]
        parts.append(part.src)
        place = part.stop
    if len(parts) != len(slices) or place != op.y.shape[op.axis]:
        return None
    fits = all(p.dtype is op.y.dtype for p in parts)
    return Concat(tuple(parts), axis=op.axis).y if fits else None


@RULES.rule(SliceScatter)
def replace_operand_of_concat(op: SliceScatter) -> Value | None:
    """Replacing just what one operand of a concatenation gave replaces that operand."""
    whole = op.x.owner
    if not isinstance(whole, Concat) or whole.axis != op.axis or op.step != 1:
        return None
    start: Dim = 0
    for i, x in enumerate(whole.xs):
        stop = dim(start + x.shape[op.axis])
        if (op.start, op.stop) == (start, stop) and op.src.type == x.type:
            return Concat((*whole.xs[:i], op.src, *whole.xs[i + 1 :]), axis=op.axis).y
        start = stop
    return None


@RULES.rule(IndexPut)
def put_at_known_place(op: IndexPut) -> Value | None:
    """An assignment at one place that is known at compile time is one to a slice."""
    if len(op.indices) != 1 or op.accumulate or op.indices[0].tensor.numel != 1:
        return None
    place, axis, size = number(op.indices[0]), op.axes[0], op.x.shape[op.axes[0]]
    if place is None or isinstance(place, bool) or not isinstance(size, int):
        return None
    start = int(place) % size
    shape = (*op.x.shape[:axis], 1, *op.x.shape[axis + 1 :])
    selected = (*op.x.shape[:axis], *op.indices[0].shape, *op.x.shape[axis + 1 :])
    src = op.src if op.src.shape == selected else Expand(op.src, shape=selected).y
    src = src if src.shape == shape else Reshape(src, shape=shape).y
    return SliceScatter(op.x, src, axis=axis, start=start, stop=start + 1).y


@RULES.rule(Binary)
def drop_expand_of_operand(op: Binary) -> Value | None:
    """An operand need not be expanded to what broadcasting makes of it anyway."""
    lhs, rhs = _unexpanded((op.lhs, op.rhs), op)
    return None if (lhs, rhs) == (op.lhs, op.rhs) else type(op)(lhs, rhs).y


@RULES.rule(Where)
def drop_expand_of_choice(op: Where) -> Value | None:
    """As `drop_expand_of_operand`, for the three operands of ``where``."""
    condition, lhs, rhs = _unexpanded((op.condition, op.lhs, op.rhs), op)
    if (condition, lhs, rhs) == (op.condition, op.lhs, op.rhs):
        return None
    return Where(condition, lhs, rhs).y


def _unexpanded(values: tuple[Value, ...], op: Op) -> list[Value]:
    """The operands with each expand left out that broadcasting makes up for."""
    found = list(values)
    for i, value in enumerate(values):
        owner = value.owner
        if not isinstance(owner, Expand) or not owner.x.shape:
            continue  # a 0-d operand would no longer take part in type promotion
        others = [v.shape for v in (*found[:i], owner.x, *found[i + 1 :])]
        if broadcast(others) == op.results[0].shape:
            found[i] = owner.x
    return found
