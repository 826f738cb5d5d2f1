"""Key and value heads that were repeated for the query heads, found again through the views."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.ir.core import Value
from fuseline.ir.ops import view
from fuseline.ir.types import Dim
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.integers import ZERO, Linear, Quotient, new_index, same_dim


def grouped_heads(value: Value, elements: Elements, *, transposed: bool = False) -> Value:
    """The heads ``[B, Hk, S, D]`` of ``value`` ``[B, H, S, D]``, once each where repeated.

    Repeating is recognised by what it does, head h being a copy of head ``h // (H / Hk)``, in
    whichever way it is spelled: expand and reshape, ``repeat_interleave``, a gather by index.
    ``transposed``: ``value`` is ``[B, H, D, S]``. The result exists already, or is a view of what
    exists; ``value`` itself where nothing was repeated.
    """
    order = (0, 1, 3, 2) if transposed else (0, 1, 2, 3)
    shape = [value.shape[i] for i in order]
    index = [new_index(name, extent) for name, extent in zip("bhsd", shape, strict=True)]
    best: tuple[tuple[Dim, int], Value] | None = None
    for source, at in elements.sources(value, [index[i] for i in order]):
        head, count = _head(index[1], shape[1], at)
        if head is None:
            continue
        want = [(index[0], shape[0]), (head, count), (index[2], shape[2]), (index[3], shape[3])]
        found = arranged(source, at, want)
        if found is None:
            continue
        rank = (count, views_between(found, source))
        if best is None or _better(rank, best[0]):
            best = rank, found
        if found is source and not same_dim(count, shape[1]):
            return source
    return best[1] if best is not None else view.Permute(value, dims=order).y


def views_between(value: Value, source: Value) -> int:
    """How many views lead from one value to another."""
    count = 0
    while value is not source and isinstance(value.owner, (view.Permute, view.Reshape)):
        value, count = value.owner.x, count + 1
    return count


def _better(rank: tuple[Dim, int], than: tuple[Dim, int]) -> bool:
    """Fewer heads first, then fewer views to get there."""
    (count, views), (other, other_views) = rank, than
    if same_dim(count, other):
        return views < other_views
    return isinstance(count, int) and isinstance(other, int) and count < other


def _head(h: Linear, heads: Dim, at: Sequence[Linear]) -> tuple[Linear | None, Dim]:
    """The expression that selects the head, and how many heads it ranges over."""
    for expr in at:
        if "h" not in expr.indices():
            continue
        if expr == h:
            return expr, heads
        atom = next(iter(expr.terms))[0]
        if isinstance(atom, Quotient) and isinstance(heads, int):
            whole = expr.const == 0 and len(expr.terms) == 1 and expr.coefficient(atom) == 1
            if whole and atom.of == h and heads % atom.by == 0:
                return expr, heads // atom.by
        return None, heads
    return ZERO, 1


def arranged(
    source: Value, at: Sequence[Linear], want: Sequence[tuple[Linear, Dim]]
) -> Value | None:
    """``source`` with its dims in the wanted order, and unit dims as wanted; None if it differs."""
    axes: list[int] = []
    for expr, extent in want:
        if extent == 1:
            continue
        fits = [
            axis
            for axis, have in enumerate(source.shape)
            if at[axis] == expr and axis not in axes and same_dim(have, extent)
        ]
        if not fits:
            return None
        axes.append(fits[0])
    units = [axis for axis in range(len(at)) if axis not in axes]
    if any(source.shape[axis] != 1 for axis in units):
        return None
    shape = tuple(extent for _, extent in want)
    if axes != sorted(axes):
        source = view.Permute(source, dims=(*axes, *units)).y
    return source if source.shape == shape else view.Reshape(source, shape=shape).y
