"""Builds the operands that a proof leaves: row positions, and the mask of what was not proven."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import cast

from fuseline.ir.core import Value
from fuseline.ir.ops import create, pointwise, view
from fuseline.ir.types import Dim, DType, product
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.integers import (
    ZERO,
    Element,
    Index,
    Linear,
    Unknown,
    of_atom,
    of_dim,
    same_dim,
    to_dim,
)
from fuseline.passes.masks.terms import Applied, Term, lined_up


class Unbuildable(ValueError):
    """Positions that no existing value holds, and that are not a sum of existing ones."""


class MaskBuilder:
    """Builds values for one attention; new ops are only constructed, never inserted.

    Args:
        elements: of the func, with all that the proof has looked at.
        place: the indices of the scores, ``b, h, q, k``.
        batch: number of batch rows.
        queries: number of queries.

    """

    def __init__(
        self, elements: Elements, place: tuple[Linear, ...], batch: Dim, queries: Dim
    ) -> None:
        self.elements = elements
        self.place = place
        self.batch = batch
        self.queries = queries

    # -- positions ----------------------------------------------------------------------------

    def positions(self, row: Linear) -> Value:
        """The i64 value ``[Sq]`` or ``[B, Sq]`` with the elements ``row``: one that exists, or new.

        Raises:
            Unbuildable: there is none, and no sum of values gives it.

        """
        by_batch = "b" in row.indices()
        shape = (self.batch, self.queries) if by_batch else (self.queries,)
        at = (self.place[0], self.place[2]) if by_batch else (self.place[2],)
        for value in self.elements.seen:
            fits = value.dtype is DType.I64 and value.shape == shape
            if fits and self.elements.at(value, at) == row:
                return value
        return self._sum(row, shape)

    def _sum(self, row: Linear, shape: tuple[Dim, ...]) -> Value:
        """A sum of an iota or a constant, and of tensors that line up with ``shape``."""
        query = self.place[2]
        parts: list[Value] = []
        rest = Linear(row.const)
        steps = 0
        for atom, coefficient in sorted(row.terms, key=str):
            match atom:
                case Element() if coefficient == 1:
                    parts.append(self._line_up(atom))
                case Index() if of_atom(atom) == query:
                    steps = coefficient
                case _:
                    rest = rest + of_atom(atom).times(coefficient)
        try:
            start = to_dim(rest)
        except Unknown as error:
            raise Unbuildable(f"no value holds {row}") from error
        if steps:
            parts.insert(0, create.Iota(length=self.queries, start=start, step=steps).y)
        elif start != 0 or not parts:
            parts.insert(0, create.Full(value=start, shape=shape[-1:], dtype=DType.I64).y)
        result = functools.reduce(lambda a, b: pointwise.Add(a, b).y, parts)
        if result.shape == shape:
            return result
        if same_dim(result.tensor.numel, product(shape)):
            return view.Reshape(result, shape=shape).y
        return view.Expand(result, shape=shape).y

    def _line_up(self, atom: Element) -> Value:
        """The tensor of an element, lined up with ``[B, Sq]`` at the last dim."""
        value = atom.value
        shape = self._lined_up_shape(value.shape, atom.at)
        fits = shape is not None and same_dim(product(shape), value.tensor.numel)
        wanted = (self.batch, self.queries)
        fits = fits and all(
            same_dim(e, 1) or same_dim(e, want)
            for e, want in zip(reversed(shape or ()), reversed(wanted), strict=False)
        )
        if shape is None or not fits or value.dtype is not DType.I64:
            raise Unbuildable(f"no value holds {of_atom(atom)}")
        return value if value.shape == shape else view.Reshape(value, shape=shape).y

    def _lined_up_shape(
        self, shape: tuple[Dim, ...], at: tuple[Linear, ...]
    ) -> tuple[Dim, ...] | None:
        batch, query = self.place[0], self.place[2]
        match at:
            case ():
                return ()
            case (i,) if i == query:
                return shape
            case (i,) if i in (ZERO, batch):
                return () if i == ZERO else (*shape, 1)
            case (i, j) if i in (ZERO, batch) and j in (query, ZERO):
                return shape[1:] if i == ZERO else shape
            case _:
                return None

    # -- masks --------------------------------------------------------------------------------

    def mask(self, terms: Sequence[Term]) -> Value:
        """One mask ``[B or 1, H or 1, Sq or 1, Sk or 1]`` that says what the terms say together."""
        conditions = [self._condition(t) for t in terms if t.how != "add"]
        numbers = [self._four(t.value) for t in terms if t.how == "add"]
        visible = _joined(conditions)
        if not numbers:
            return cast("Value", visible)
        added = functools.reduce(lambda a, b: pointwise.Add(a, b).y, numbers)
        return added if visible is None else _hidden(visible, added, -math.inf)

    def numbers(self, masks: Sequence[Applied]) -> Value:
        """Masks as numbers to add, hidden keys having the fill that they had."""
        added = [self._four(_smallest(m.value)) for m in masks if m.how == "add"]
        result = (
            functools.reduce(lambda a, b: pointwise.Add(a, b).y, added)
            if added
            else create.Full(value=0.0, dtype=DType.F32).y
        )
        for mask in masks:
            if mask.how != "add":
                value = self._four(_smallest(mask.value))
                visible = value if mask.how == "keep" else pointwise.LogicalNot(value).y
                result = _hidden(visible, result, mask.fill)
        return result

    def _condition(self, term: Term) -> Value:
        value = self._narrow(term.value)
        visible = value if term.how == "keep" else pointwise.LogicalNot(value).y
        return self._four(visible)

    def _four(self, value: Value) -> Value:
        missing = 4 - len(value.shape)
        shape = (1,) * missing + value.shape
        return view.Reshape(value, shape=shape).y if missing else value

    def _narrow(self, value: Value) -> Value:
        """A gather of a row of conditions by batch and key as the view that it is."""
        batch, _, _, key = self.place
        for source, at in self.elements.sources(value, self.place[4 - len(value.shape) :]):
            if source is value or len(source.shape) != 2 or source.dtype is not DType.BOOL:
                continue
            (row, column), rows = at, source.shape[0]
            by_batch = row == batch and same_dim(rows, self.batch)
            offset = column - key
            if key == ZERO or not (by_batch or rows == 1) or offset.indices():
                continue
            if self.elements.bounds.nonnegative(offset):
                return self._row(source, offset) or value
        return value

    def _row(self, source: Value, offset: Linear) -> Value | None:
        """Conditions ``[B, N]`` as ``[B, 1, 1, Sk]``, from a key on; None if N is less."""
        start, stop = to_dim(offset), to_dim(offset + of_dim(self._keys))
        extent = source.shape[1]
        if not (same_dim(start, 0) and same_dim(stop, extent)):
            if not self.elements.bounds.nonnegative(of_dim(extent) - of_dim(stop)):
                return None
            source = view.Slice(source, axis=1, start=start, stop=stop).y
        return view.Reshape(source, shape=(source.shape[0], 1, 1, source.shape[1])).y

    @property
    def _keys(self) -> Dim:
        (atom,) = (a for a, _ in self.place[3].terms)
        return to_dim(cast("Index", atom).extent)


def _smallest(value: Value) -> Value:
    """The value before it was expanded: masks broadcast anyhow."""
    while (inner := lined_up(value)) is not None:
        value = inner
    return value


def _joined(conditions: Sequence[Value]) -> Value | None:
    if not conditions:
        return None
    return functools.reduce(lambda a, b: pointwise.BitwiseAnd(a, b).y, conditions)


def _hidden(visible: Value, numbers: Value, fill: float) -> Value:
    """``numbers`` where visible, else the fill."""
    other = create.Full(value=fill, dtype=numbers.dtype).y
    return pointwise.Where(visible, numbers, other).y
