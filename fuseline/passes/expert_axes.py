"""Which of a few named axes the dims of a value follow, seen backwards through views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from fuseline.ir.core import Value
from fuseline.ir.ops.view import Expand, Permute, Reshape, View
from fuseline.ir.types import Dim, dim, same

Axes: TypeAlias = tuple[str, ...]
"""For each dim of a value the axes that it runs over, one letter each: ``"et"`` is e major."""

Extents: TypeAlias = Mapping[str, Dim]


def traced(value: Value, axes: Axes, extents: Extents) -> Iterator[tuple[Value, Axes]]:
    """A value and what it is a view of, each with the axes that its dims follow."""
    while True:
        yield value, axes
        match value.owner:
            case Permute(x, dims=dims):
                found: Axes | None = tuple(axes[dims.index(i)] for i in range(len(dims)))
            case Expand(x):
                found = broadcast(x, axes)
            case Reshape(x):
                found = _regrouped("".join(axes), x.shape, extents)
            case _:
                return
        if found is None:
            return
        value, axes = x, found


def viewed(op: View, axes: Axes, extents: Extents) -> Axes | None:
    """The axes of what a view makes of what follows ``axes``; None where they get mixed up."""
    match op:
        case Permute(dims=dims):
            return tuple(axes[i] for i in dims)
        case Reshape(shape=shape):
            return _regrouped("".join(axes), shape, extents)
        case _:
            return None


def follows(axes: Axes, wanted: str, extents: Extents) -> bool:
    """Whether there is one dim for each of the wanted axes, in their order."""
    return axes == tuple("" if extents[letter] == 1 else letter for letter in wanted)


def broadcast(operand: Value, axes: Axes) -> Axes:
    """The axes of an operand that is broadcast to what follows ``axes``."""
    lead = len(axes) - len(operand.shape)
    return tuple("" if e == 1 else axes[i + lead] for i, e in enumerate(operand.shape))


def _regrouped(letters: str, shape: Sequence[Dim], extents: Extents) -> Axes | None:
    """The same axes in row-major order over the dims of another shape."""
    rest = [letter for letter in letters if extents[letter] != 1]
    found: list[str] = []
    for extent in shape:
        taken, have = "", dim(1)
        while not same(have, extent):
            if not rest:
                return None
            letter = rest.pop(0)
            taken, have = taken + letter, dim(have * extents[letter])
        found.append(taken)
    return None if rest else tuple(found)


def view_along(value: Value, axes: Axes, wanted: str, extents: Extents) -> Value | None:
    """What a value is a view of, with one dim for each of the wanted axes, in their order."""
    present = [letter for letter in wanted if extents[letter] != 1]
    best: Value | None = None
    for source, own in traced(value, axes, extents):
        if sorted("".join(own)) != sorted(present) or any(len(a) > 1 for a in own):
            continue
        order = [own.index(letter) for letter in present]
        if order == sorted(order):
            best = source.owner.x if isinstance(source.owner, Reshape) else source
            continue
        rest = [i for i in range(len(own)) if i not in order]
        best = best or Permute(source, dims=(*rest, *order)).y
    shape = tuple(extents[letter] for letter in wanted)
    return best if best is None or best.shape == shape else Reshape(best, shape=shape).y
