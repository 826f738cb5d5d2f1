"""The element of a tensor at symbolic indices, found by following the ops that make it.

`Elements` answers "what is ``%x[b, 0, q, k]``": through views, casts, comparisons, gathers by
index tensors, running sums and choices, down to running indices, sizes, constants and elements of
tensors that are data. It never guesses: what it cannot follow is data, an element of the value
where it had to stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from fuseline.ir.core import Func, Op, Ref, Trait, Value
from fuseline.ir.ops import buffer, call, create, index, reduce, view
from fuseline.ir.types import BufferType, Dim, DType
from fuseline.passes.masks.arithmetic import constant, pointwise_op
from fuseline.passes.masks.bounds import Bounds
from fuseline.passes.masks.expressions import (
    Datum,
    Expression,
    Opaque,
    as_condition,
    as_integer,
    as_linear,
    lift,
    pick,
)
from fuseline.passes.masks.integers import (
    ZERO,
    Element,
    Linear,
    Unknown,
    new_index,
    of_atom,
    of_dim,
)
from fuseline.passes.masks.places import Place, source_place
from fuseline.passes.masks.predicates import Known, Truth, all_of, at_least_zero, negate


class Elements:
    """Elements of the values of one func; what has been asked once is remembered.

    Args:
        func: read for the ranges of its symbols, and for which reads of a buffer give the same.

    """

    def __init__(self, func: Func) -> None:
        self.bounds = Bounds(dict(func.symbols))
        self._same_read = _first_reads(func)
        self._known: dict[tuple[Value, Place], Expression] = {}
        self._indices = 0

    @property
    def seen(self) -> tuple[Value, ...]:
        """The values asked for so far, each once, in order."""
        return tuple(dict.fromkeys(value for value, _ in self._known))

    def at(self, value: Value, place: Sequence[Linear]) -> Expression:
        """The element of a value at a place: an index expression for each of its dims."""
        key = (value, clip(value, place))
        if key not in self._known:
            found = self._follow(*key)
            settled = self.bounds.settle(found) if isinstance(found, Linear) else found
            self._known[key] = settled
        return self._known[key]

    def broadcast_at(self, value: Value, place: Sequence[Linear]) -> Expression:
        """The element of a value that is broadcast to more dims, lined up at the last one."""
        return self.at(value, place[len(place) - len(value.shape) :])

    def sources(self, value: Value, place: Sequence[Linear]) -> Iterator[tuple[Value, Place]]:
        """The values that an element is a copy of, by way of views and gathers, with its places.

        The value itself comes first; the last one is made by an op that computes.
        """
        while True:
            where = clip(value, place)
            yield value, where
            op = value.owner
            if op is None or not _copies(op):
                return
            try:
                place = source_place(op, where, self._index_element, self.bounds)
            except (Opaque, Unknown):
                return
            value = op.operands[0]

    # -- following the ops --------------------------------------------------------------------

    def _follow(self, value: Value, where: Place) -> Expression:
        op = value.owner
        if op is None:
            return self._data(value, where)
        try:
            return self._through(op, value, where)
        except (Opaque, Unknown):
            return self._data(value, where)

    def _data(self, value: Value, where: Place) -> Expression:
        value = self._same_read.get(value, value)
        if value.dtype is DType.BOOL:
            return Truth(value, where)
        return Datum(value, where) if value.dtype.is_float else of_atom(Element(value, where))

    def _through(self, op: Op, value: Value, where: Place) -> Expression:
        if _copies(op):
            source = source_place(op, where, self._index_element, self.bounds)
            return self.at(op.operands[0], source)
        if op.has(Trait.POINTWISE):
            args = [self.broadcast_at(v, where) for v in op.operands]
            return pointwise_op(op, args, self.bounds)
        match op:
            case create.Full():
                return constant(op.value, op.dtype)
            case create.Iota() if not op.dtype.is_float:
                step = as_linear(constant(op.step, DType.I64))
                start = as_linear(constant(op.start, DType.I64))
                return where[0].times(_fixed(step)) + start
            case view.Concat():
                return self._concat(op, where)
            case view.Pad(x):
                inside = of_dim(op.before), of_dim(op.before) + of_dim(x.shape[op.axis])
                return self._patched(x, inside, op.axis, where, constant(op.value, x.dtype))
            case index.SliceScatter(x, src) if op.step == 1:
                inside = of_dim(op.start), of_dim(op.stop)
                return self._patched(src, inside, op.axis, where, self.at(x, where))
            case index.Gather(x, which):
                along = self._index_element(which, where, of_dim(x.shape[op.axis]))
                return self._along(x, op.axis, where, along)
            case reduce.Cumsum():
                return self._running_sum(op, where)
            case reduce.All() | reduce.Any():
                return self._reduced(op, where)
            case call.AtenCall():
                return self._call(op, value, where)
            case _:
                raise Opaque

    def _along(self, value: Value, axis: int, where: Place, i: Linear) -> Expression:
        """The element with another index along one axis."""
        return self.at(value, (*where[:axis], i, *where[axis + 1 :]))

    def _index_element(self, value: Value, place: Place, extent: Linear) -> Linear:
        """An index as the place that it selects: negative ones count from the end."""
        if value.dtype is DType.BOOL:
            raise Opaque
        found = as_linear(self.broadcast_at(value, place))
        if self.bounds.nonnegative(found):
            return found
        if self.bounds.nonnegative((-found).plus(-1)):
            return found + extent
        raise Opaque

    # -- pieces along an axis -----------------------------------------------------------------

    def _concat(self, op: view.Concat, where: Place) -> Expression:
        if any(x.dtype is not op.y.dtype for x in op.xs):
            raise Opaque
        i = where[op.axis]
        end = of_dim(op.y.shape[op.axis])
        result: Expression | None = None
        for x in reversed(op.xs):
            start = end - of_dim(x.shape[op.axis])
            here = self._along(x, op.axis, where, i - start)
            beyond = at_least_zero(i - end, self.bounds)
            result = here if result is None else pick(negate(beyond), here, result)
            end = start
        return cast("Expression", result)

    def _patched(
        self,
        patch: Value,
        inside: tuple[Linear, Linear],
        axis: int,
        where: Place,
        outside: Expression,
    ) -> Expression:
        """The elements of ``patch`` from one place of an axis to another, and others outside."""
        (start, end), i = inside, where[axis]
        within = [
            at_least_zero(i - start, self.bounds),
            at_least_zero((end - i).plus(-1), self.bounds),
        ]
        return pick(all_of(within), self._along(patch, axis, where, i - start), outside)

    def _inner_index(self, extent: Dim) -> Linear:
        """An index over what a reduction sums, unlike any other."""
        self._indices += 1
        return new_index(f"i{self._indices}", extent)

    # -- sums and reductions ------------------------------------------------------------------

    def _running_sum(self, op: reduce.Cumsum, where: Place) -> Expression:
        """A running sum of one and the same number: so many times that."""
        inner = self._inner_index(op.x.shape[op.axis])
        each = as_linear(as_integer(self._along(op.x, op.axis, where, inner)))
        return where[op.axis].plus(1).times(_fixed(each))

    def _reduced(self, op: reduce.Reduce, where: Place) -> Expression:
        """All or any of elements that are known, and the same, everywhere."""
        kept = iter([i for a, i in enumerate(where) if not (op.keepdim and a in op.axes)])
        place = [
            self._inner_index(extent) if axis in op.axes else next(kept)
            for axis, extent in enumerate(op.x.shape)
        ]
        each = as_condition(self.at(op.x, place), self.bounds)
        some = all(self.bounds.nonnegative(of_dim(op.x.shape[a]).plus(-1)) for a in op.axes)
        if isinstance(each, Known) and (some or each.value == isinstance(op, reduce.All)):
            return each
        raise Opaque

    # -- calls of ATen ------------------------------------------------------------------------

    def _call(self, op: call.AtenCall, value: Value, where: Place) -> Expression:
        match op.target, op.args, op.kwargs:
            case "aten.diff.default", (Ref(0), 1, int(axis), Ref(1)), ():
                return self._difference(op.xs[0], op.xs[1], axis % len(where), where)
            case "aten.triu.default" | "aten.tril.default", (Ref(0), *rest), ():
                beyond = (where[-1] - where[-2]).plus(-int(cast("Any", rest[0])) if rest else 0)
                keep = beyond if op.target == "aten.triu.default" else -beyond
                zero = constant(0, value.dtype)
                return pick(at_least_zero(keep, self.bounds), self.at(op.xs[0], where), zero)
            case _:
                raise Opaque

    def _difference(self, x: Value, first: Value, axis: int, where: Place) -> Expression:
        """``x[i] - x[i - 1]``, with ``first`` (one element) standing before the others."""
        if first.shape[axis] != 1 or x.dtype is DType.BOOL:
            raise Opaque
        i = where[axis]
        at_start = at_least_zero(-i, self.bounds)
        before = pick(
            at_start, self._along(first, axis, where, ZERO), self._along(x, axis, where, i.plus(-1))
        )

        def minus(*leaves: Expression) -> Expression:
            return as_linear(leaves[0]) - as_linear(leaves[1])

        return lift(minus, self.at(x, where), before)


def clip(value: Value, place: Sequence[Linear]) -> Place:
    """A place with 0 for each dim of extent 1, which is what broadcasting reads there."""
    return tuple(ZERO if extent == 1 else i for i, extent in zip(place, value.shape, strict=True))


def _copies(op: Op) -> bool:
    return op.has(Trait.VIEW) or isinstance(op, (index.Index, index.IndexSelect))


def _fixed(expr: Linear) -> int:
    if not expr.is_const:
        raise Opaque
    return expr.const


def _first_reads(func: Func) -> dict[Value, Value]:
    """Each read of a buffer with the first one that gives the same: no write came between."""
    current: dict[Value, Value] = {}
    same: dict[Value, Value] = {}
    for op in func.ops:
        if isinstance(op, buffer.Read):
            same[op.y] = current.setdefault(op.buffer, op.y)
        elif op.has(Trait.WRITES) or isinstance(op, call.AtenCall):
            for value in op.operands:
                if isinstance(value.type, BufferType):
                    current.pop(value, None)
    return same
