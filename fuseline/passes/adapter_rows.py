"""Values with one entry for each row, and rows that keep their order through views.

Plain PyTorch code has one number for each row, or one for each sequence, and puts it beside a
matrix of any rank by dims of 1. What counts is row-major order: a view that keeps it changes
nothing, and a value that is repeated along trailing dims has the same entry for rows in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.view import Expand, Permute, Reshape
from fuseline.ir.types import Dim, same
from fuseline.passes.expert_rows import unexpanded
from fuseline.passes.match import reshaped


def keeps_order(op: Op) -> bool:
    """Whether an op is a view that leaves all elements in their row-major order."""
    if isinstance(op, Reshape):
        return True
    if not isinstance(op, Permute):
        return False
    moved = [d for d in op.dims if op.x.shape[d] != 1]
    return moved == sorted(moved)


def viewed(value: Value) -> Value:
    """What a value was before views that keep its elements in order."""
    while value.owner is not None and keeps_order(value.owner):
        value = value.owner.operands[0]
    return value


@dataclass(frozen=True)
class PerRow:
    """A value with an entry for each row, or for several rows in a row.

    Attributes:
        value: of any shape; its elements in row-major order are the entries.
        shape: of the entries, with as many dims as ``lead``; trailing ones are 1 where an entry
            is of several rows.
        lead: the dims of the rows.
    """

    value: Value
    shape: tuple[Dim, ...]
    lead: tuple[Dim, ...]

    def spread(self, lead: Sequence[Dim]) -> Value:
        """One entry for each row, the rows in other dims."""
        found = reshaped(self.value, self.shape)
        if self.shape != self.lead:
            found = Expand(found, shape=self.lead).y
        return reshaped(found, tuple(lead))


def per_row(value: Value, shape: Sequence[Dim], lead: Sequence[Dim]) -> PerRow | None:
    """The entries of a value that is broadcast, as ``shape``, against rows in the dims ``lead``;
    None where rows in a row would not have the same one.
    """
    if len(shape) > len(lead):
        return None
    full = (*(1,) * (len(lead) - len(shape)), *shape)
    repeated = False
    for extent, rows in zip(full, lead, strict=True):
        if repeated and extent != 1:
            return None
        if not same(extent, rows):
            if extent != 1:
                return None
            repeated = True
    return PerRow(value, full, tuple(lead))


def row_axis(value: Value, width: Dim) -> int | None:
    """The axis of the columns of rows, behind which there are only dims of 1."""
    for axis in reversed(range(len(value.shape))):
        if same(value.shape[axis], width):
            return axis
        if value.shape[axis] != 1:
            return None
    return None


def factor_of(other: Value, rows: Value, width: Dim) -> PerRow | None:
    """The entries of a value that is combined with rows element by element, one for each row."""
    axis = row_axis(rows, width)
    if axis is None:
        return None
    behind = len(rows.shape) - axis
    source = unexpanded(other)
    shape = source.shape
    if len(shape) < behind and any(e != 1 for e in shape):
        return None
    if any(e != 1 for e in shape[max(0, len(shape) - behind) :]):
        return None
    return per_row(viewed(source), shape[: max(0, len(shape) - behind)], rows.shape[:axis])


__all__ = ["PerRow", "factor_of", "keeps_order", "per_row", "row_axis", "viewed"]
