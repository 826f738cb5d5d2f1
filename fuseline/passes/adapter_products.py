"""Products of rows by the matrices that were gathered for each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from fuseline.ir.core import Op, Ref, Value
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.index import Embedding, Gather, Index, IndexSelect
from fuseline.ir.ops.matmul import Matmul
from fuseline.ir.ops.pointwise import Cast, Mul
from fuseline.ir.ops.reduce import Sum
from fuseline.ir.ops.view import Permute, Reshape, Slice
from fuseline.ir.types import Dim, dim, same
from fuseline.passes.adapter_rows import PerRow, per_row, viewed
from fuseline.passes.constants import number
from fuseline.passes.expert_rows import unexpanded
from fuseline.passes.wording import called

SWAPPED = (0, 2, 1)
"""The dims of a stack of matrices, each turned."""


@dataclass(frozen=True)
class Stack:
    """Matrices that are gathered of a stack.

    Attributes:
        values: the stack ``[n, P, Q]``, or ``[n, P * Q]`` of an embedding.
        shape: ``(n, P, Q)``.
        ids: the number of each matrix that is gathered.
        swapped: whether they are used ``[Q, P]``.
        wraps: whether negative numbers count from the end.
        changed: what is done to them afterwards, in words.
        active: how many of the stack, the first ones, are gathered of; None: all.
    """

    values: Value
    shape: tuple[Dim, Dim, Dim]
    ids: Value
    swapped: bool
    wraps: bool
    changed: str = ""
    active: Dim | None = None

    @property
    def matrices(self) -> tuple[Value, bool]:
        """The stack ``[n, ., .]`` without a turn of its matrices, and whether they were turned."""
        if self.values.tensor.rank != 3:
            return Reshape(self.values, shape=self.shape).y, False
        owner = self.values.owner
        if isinstance(owner, Permute) and owner.dims == SWAPPED:
            return owner.x, True
        return self.values, False


@dataclass(frozen=True)
class AdapterProduct:
    """Rows ``[..., K]``, each by its matrix.

    Attributes:
        op: what computes it, and ``y`` its result, or the sum that is computed with it.
        rows: what is multiplied; its elements in row-major order are the rows.
        stack: what the matrices are gathered of.
        by_columns: whether the stack, as it is indexed, has matrices ``[K, N]``.
        numbers: of the matrices, for each row.
        depth, width: K and N.
        base: what is added in the same op.
        scale: what the product is multiplied by before that.
    """

    op: Op
    y: Value
    rows: Value
    stack: Stack
    by_columns: bool
    numbers: PerRow
    depth: Dim
    width: Dim
    base: Value | None = None
    scale: float = 1.0

    @property
    def matrices(self) -> tuple[Value, bool]:
        """The stack, and whether its matrices are ``[K, N]``."""
        values, turned = self.stack.matrices
        return values, self.by_columns is not turned


def adapter_product(op: Op) -> AdapterProduct | None:
    """An op as a product by gathered matrices; None where it is none."""
    match op:
        case Matmul(lhs, rhs):
            return _right(op, op.y, lhs, rhs) or _left(op, lhs, rhs)
        case Sum(x, axes=(axis,)) if isinstance(x.owner, Mul):
            lhs, rhs = x.owner.lhs, x.owner.rhs
            return _summed(op, lhs, rhs, axis) or _summed(op, rhs, lhs, axis)
        case AtenCall((base, rows, matrices), target="aten.baddbmm.default") if _in_order(op):
            scale = _alpha(op)
            if scale is None or base.shape != op.ys[0].shape:
                return None
            return _right(op, op.ys[0], rows, matrices, base, scale)
        case _:
            return None


def _in_order(op: AtenCall) -> bool:
    """Whether the three tensors are what is added, and both factors."""
    return op.args == (Ref(0), Ref(1), Ref(2))


def _alpha(op: AtenCall) -> float | None:
    """What the product is multiplied by; None where the other summand is multiplied too."""
    named = {str(k): v for k, v in cast("tuple[tuple[str, object], ...]", op.kwargs)}
    scale = named.get("alpha", 1)
    return float(scale) if isinstance(scale, (int, float)) and named.get("beta", 1) == 1 else None


def _right(
    op: Op,
    y: Value,
    rows: Value,
    matrices: Value,
    base: Value | None = None,
    scale: float = 1.0,
) -> AdapterProduct | None:
    """``rows @ matrices``: rows ``[..., M, K]``."""
    stack = gathered(matrices)
    if stack is None or len(rows.shape) < 2:
        return None
    lead = rows.shape[:-1]
    numbers = per_row(stack.ids, (*matrices.shape[:-2], 1), lead)
    if numbers is None or not _same_dims((*lead, matrices.shape[-1]), y.shape):
        return None
    depth, width = matrices.shape[-2:]
    by_columns = not stack.swapped
    return AdapterProduct(op, y, rows, stack, by_columns, numbers, depth, width, base, scale)


def _left(op: Matmul, matrices: Value, column: Value) -> AdapterProduct | None:
    """``matrices @ column``: one column ``[..., K, 1]``."""
    stack = gathered(matrices)
    if stack is None or len(column.shape) < 2 or column.shape[-1] != 1:
        return None
    lead = column.shape[:-2]
    numbers = per_row(stack.ids, matrices.shape[:-2], lead)
    width, depth = matrices.shape[-2:]
    if numbers is None or not _same_dims((*lead, width, 1), op.y.shape):
        return None
    return AdapterProduct(op, op.y, column, stack, stack.swapped, numbers, depth, width)


def _summed(op: Sum, matrices: Value, rows: Value, axis: int) -> AdapterProduct | None:
    """``(matrices * rows).sum(axis)``: rows ``[..., 1, K]`` or ``[..., K, 1]``."""
    stack, rank = gathered(matrices), len(matrices.shape)
    if stack is None or op.x.tensor.rank != rank or len(rows.shape) != rank:
        return None
    other = {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis)
    if other is None or rows.shape[other] != 1:
        return None
    depth, width = matrices.shape[axis], matrices.shape[other]
    lead = rows.shape[:-2]
    numbers = per_row(stack.ids, matrices.shape[:-2], lead)
    if numbers is None or not same(rows.shape[axis], depth):
        return None
    if not _same_dims(op.x.shape[:-2], lead) or op.y.dtype is not rows.dtype:
        return None
    by_columns = (axis == rank - 2) is not stack.swapped
    return AdapterProduct(op, op.y, rows, stack, by_columns, numbers, depth, width)


def _same_dims(one: tuple[Dim, ...], other: tuple[Dim, ...]) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def gathered(value: Value) -> Stack | None:
    """What matrices ``[..., P, Q]`` are gathered of; None where they are not."""
    swapped, changed = False, ""
    last = value.shape[-2:]
    while True:
        match value.owner:
            case Cast(x):
                changed = changed or f"cast to {value.dtype}"
                value = x
            case Mul(lhs, rhs):
                return _multiplied(value, lhs, rhs, swapped)
            case Permute(x, dims=dims) if _swaps_last(dims):
                swapped, value = not swapped, x
                last = last[::-1]
            case Reshape(x) if len(x.shape) >= 2 and _same_dims(x.shape[-2:], last):
                value = x
            case Reshape(x) if isinstance(x.owner, Embedding):
                return _embedded(x.owner, last, swapped, changed)
            case Index(x, (ids,), axes=(0,)):
                return _stack(x, ids, swapped, wraps=True, changed=changed)
            case IndexSelect(x, ids, axis=0):
                return _stack(x, ids, swapped, wraps=False, changed=changed)
            case Gather(x, index, axis=0) if _of_whole_matrices(x, index):
                return _stack(x, unexpanded(index), swapped, wraps=False, changed=changed)
            case _:
                return None


def _multiplied(y: Value, lhs: Value, rhs: Value, swapped: bool) -> Stack | None:
    """Matrices that something is multiplied into."""
    for matrices, by in ((lhs, rhs), (rhs, lhs)):
        stack = gathered(matrices) if matrices.shape == y.shape else None
        if stack is not None:
            known = number(by)
            what = called(viewed(unexpanded(by))) if known is None else str(known)
            swapped = stack.swapped is not swapped
            return replace(stack, swapped=swapped, changed=f"multiplied by {what}")
    return None


def _of_whole_matrices(x: Value, index: Value) -> bool:
    """Whether a gather takes all of a matrix by one number: ``[B, 1, 1]`` that is expanded."""
    alone = unexpanded(index).shape[1:] == (1, 1)
    return alone and _same_dims(index.shape[1:], x.shape[1:])


def _swaps_last(dims: tuple[int, ...]) -> bool:
    rank = len(dims)
    return rank >= 2 and dims == (*range(rank - 2), rank - 1, rank - 2)


def _stack(x: Value, ids: Value, swapped: bool, *, wraps: bool, changed: str) -> Stack | None:
    if x.tensor.rank != 3:
        return None
    active = None
    match x.owner:
        case Slice(whole, axis=0, start=0, step=1) if not isinstance(x.shape[0], int):
            x, active = whole, x.shape[0]
        case _:
            pass
    n, p, q = x.shape
    return Stack(x, (n, p, q), ids, swapped, wraps, changed, active)


def _embedded(op: Embedding, last: tuple[Dim, ...], swapped: bool, changed: str) -> Stack | None:
    """Rows of a table, each of them a matrix."""
    n, columns = op.weight.shape
    if len(last) != 2 or not same(dim(last[0] * last[1]), columns):
        return None
    return Stack(
        op.weight, (n, last[0], last[1]), op.indices, swapped, wraps=False, changed=changed
    )


__all__ = ["AdapterProduct", "Stack", "adapter_product", "gathered"]
