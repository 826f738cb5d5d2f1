"""Growing a region of element-wise ops around a seed, for ``fuse-pointwise``.

A region iterates over one space. Its members compute all of that space (*element*), one value for
each of its rows (*row*, behind a reduction), or a smaller operand that is broadcast into it
(*small*): those have no readers outside. Constants are copied in and may have any. Reshapes that
only add dims of 1, and expands, are looked through. A region is convex: nothing outside lies
between two members.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops import pointwise as ops
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.reduce import Reduce
from fuseline.ir.ops.view import Expand, Reshape
from fuseline.ir.region import REDUCTIONS
from fuseline.ir.types import Dim
from fuseline.passes.dependence import depends

Level: TypeAlias = Literal["element", "row", "small"]

EXPENSIVE = (
    ops.Exp, ops.Log, ops.Log1p, ops.Sin, ops.Cos, ops.Tanh, ops.Erf, ops.Sigmoid, ops.Silu,
    ops.Softplus, ops.Gelu, ops.Pow, ops.FloorDivide, ops.Remainder,
)  # fmt: skip
"""Ops that cost more than reading their result back from memory."""

CONSTANTS = (Full, Iota)


@dataclass(frozen=True)
class Limits:
    """How large a region may become: members, and operands from outside."""

    ops: int = 32
    operands: int = 12


@dataclass
class Growth:
    """A region while it grows."""

    func: Func
    space: tuple[Dim, ...]
    limits: Limits
    levels: dict[Op, Level] = field(default_factory=dict[Op, "Level"])
    reduction: Reduce | None = None

    def grow(self, seed: Op) -> bool:
        """Take in whatever can be joined to a seed; False if what came of it saves nothing."""
        queue = [seed]
        refused: set[Op] = set()
        while queue:
            op = queue.pop(0)
            if op in self.levels or op in refused or len(self.levels) >= self.limits.ops:
                continue
            if not self.take(op):
                refused.add(op)
                continue
            near = [p for v in op.operands if (p := source(v)[0].owner) is not None]
            if not isinstance(op, CONSTANTS):
                near += [reader for v in op.results for reader, _ in readers(self.func, v)]
            refused.difference_update(near)
            queue += near
        return self.worthwhile() and not self.broadcast_elsewhere()

    def take(self, op: Op) -> bool:
        """Take an op in, if the region stays one."""
        level = self.level(op)
        if level is None:
            return False
        self.levels[op] = level
        before = self.reduction
        if isinstance(op, REDUCTIONS):
            self.reduction = op
        if self.fits():
            return True
        del self.levels[op]
        self.reduction = before
        return False

    def level(self, op: Op) -> Level | None:
        """What an op would be in this region; None where it cannot be in it."""
        if isinstance(op, REDUCTIONS):
            return "row" if self._reduces(op) else None
        if not joinable(op):
            return None
        if isinstance(op, CONSTANTS):
            return "small"
        shape = op.results[0].shape
        if self._by_row(shape) and self._behind_reduction(op):
            return "row"
        return "element" if shape == self.space else self._small(op)

    def _reduces(self, op: Reduce) -> bool:
        """Whether a reduction runs over the last dims of the space, and is the only one."""
        rank = len(self.space)
        last = set(range(rank - len(op.axes), rank))
        return self.reduction is None and op.x.shape == self.space and set(op.axes) == last != set()

    def _by_row(self, shape: tuple[Dim, ...]) -> bool:
        """Whether a shape has one element for each row, the reduced dims kept as 1 or left out."""
        if self.reduction is None:
            return False
        count = len(self.reduction.axes)
        kept = self.space[: len(self.space) - count]
        return shape in (kept, (*kept, *(1,) * count))

    def _behind_reduction(self, op: Op) -> bool:
        """Whether an op reads a row value of the region, so that it must be computed by row."""
        owners = [source(v)[0].owner for v in op.operands]
        return any(o is not None and self.levels.get(o) == "row" for o in owners)

    def _small(self, op: Op) -> Level | None:
        """An operand broadcast into the space: cheap, or the same for a whole row of it."""
        value = op.results[0]
        if self.func.is_returned(value):
            return None
        found = list(readers(self.func, value))
        if not found or any(r not in self.levels for r, _ in found):
            return None
        by_row = all(v.shape[-1:] == (1,) or not v.shape for _, v in found)
        all_of_it = [d for d in value.shape if d != 1] == [d for d in self.space if d != 1]
        cheap = not isinstance(op, EXPENSIVE)
        return "small" if by_row or all_of_it or cheap else None

    # -- what must hold ---------------------------------------------------------------------

    def fits(self) -> bool:
        """Whether what was taken in is still one region."""
        return (
            len(self.operands()) <= self.limits.operands
            and self._results_fit()
            and self._convex()
            and not self._repeats_work()
        )

    def operands(self) -> list[Value]:
        """What the region reads from outside, in order of first use."""
        found: dict[Value, None] = {}
        for op in self.members():
            for value in op.operands:
                if source(value)[0].owner not in self.levels:
                    found[value] = None
        return list(found)

    def members(self) -> list[Op]:
        """The members in program order."""
        return sorted(self.levels, key=self.func.places.__getitem__)

    def results(self) -> list[Value]:
        """The members' values that are read outside, or returned."""
        work = [op for op in self.members() if not isinstance(op, CONSTANTS)]
        return [v for op in work for v in op.results if self._read_outside(v)]

    def _read_outside(self, value: Value) -> bool:
        if _returned(self.func, value):
            return True
        return any(r not in self.levels for r, _ in readers(self.func, value))

    def _results_fit(self) -> bool:
        return all(self.levels[v.owner] != "small" for v in self.results() if v.owner is not None)

    def _convex(self) -> bool:
        outside = [v for v in self.operands() if v.owner is not None]
        return not depends(self.func, outside, self.levels)

    def _repeats_work(self) -> bool:
        """Whether an expensive op would be computed both for a reduction and again behind it."""
        if self.reduction is None:
            return False
        first = self._needed([self.reduction.x])
        last = [v for v in self.results() if v.owner and self.levels[v.owner] == "element"]
        return any(isinstance(op, EXPENSIVE) for op in first & self._needed(last))

    def _needed(self, values: list[Value]) -> set[Op]:
        """The members that compute these values element by element, rows left out."""
        found: set[Op] = set()
        stack = [source(v)[0].owner for v in values]
        while stack:
            op = stack.pop()
            if op is None or op in found or self.levels.get(op) != "element":
                continue
            found.add(op)
            stack += [source(v)[0].owner for v in op.operands]
        return found

    def worthwhile(self) -> bool:
        """Whether the region saves anything: two computations, or one with its constants."""
        return len(self.levels) > 1 and bool(self.results())

    def broadcast_elsewhere(self) -> bool:
        """Whether all of it is cheap and only broadcast into larger spaces, whose it should be."""
        if any(isinstance(op, EXPENSIVE) for op in self.levels) or self.reduction is not None:
            return False
        outside = [
            r for v in self.results() for r, _ in readers(self.func, v) if r not in self.levels
        ]
        returned = any(_returned(self.func, v) for v in self.results())
        return bool(outside) and not returned and all(self._wider(r) for r in outside)

    def _wider(self, op: Op) -> bool:
        own = [d for d in self.space if d != 1]
        return joinable(op) and len([d for d in op.results[0].shape if d != 1]) > len(own)


def joinable(op: Op) -> bool:
    """Whether an op can be computed point by point in a region."""
    if isinstance(op, CONSTANTS):
        return True
    if not op.has(Trait.POINTWISE):
        return False
    if isinstance(op, (ops.FloorDivide, ops.Remainder)) and not op.y.dtype.is_float:
        divisor = source(op.rhs)[0].owner
        return isinstance(divisor, Full) and isinstance(divisor.value, int) and divisor.value != 0
    return True


def source(value: Value) -> tuple[Value, list[Op]]:
    """What a value is a view of, through reshapes that add dims of 1 and expands; and those."""
    views: list[Op] = []
    while True:
        match value.owner:
            case Expand(x) as op:
                pass
            case Reshape(x) as op if adds_dims(op):
                pass
            case _:
                return value, views
        views.insert(0, op)
        value = x


def adds_dims(op: Reshape) -> bool:
    """Whether a reshape only adds or removes dims of 1."""
    return [d for d in op.x.shape if d != 1] == [d for d in op.shape if d != 1]


def readers(func: Func, value: Value) -> Iterator[tuple[Op, Value]]:
    """The ops that read a value or such a view of it, each with what it reads."""
    for user in func.users(value):
        if isinstance(user, Expand) or (isinstance(user, Reshape) and adds_dims(user)):
            yield from readers(func, user.y)
        else:
            yield user, value


def _returned(func: Func, value: Value) -> bool:
    if func.is_returned(value):
        return True
    views = [u for u in func.users(value) if isinstance(u, (Expand, Reshape))]
    return any(_returned(func, u.y) for u in views if isinstance(u, Expand) or adds_dims(u))
