"""What looks like low-rank adapters of which each row has its own, and is no `multi_lora`: why.

Every one of these forms has two products by matrices of the same adapters, chosen by numbers that
no router computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.index import Embedding, Index, IndexSelect
from fuseline.ir.ops.matmul import Matmul
from fuseline.ir.ops.pointwise import Cast, Eq, Ge, Gt, Le, Lt, Mul, Ne, Where
from fuseline.ir.ops.reduce import Sum
from fuseline.ir.ops.view import Expand, Permute, Reshape
from fuseline.ir.types import Dim
from fuseline.passes.adapter_products import AdapterProduct, adapter_product, gathered
from fuseline.passes.adapter_rows import factor_of, keeps_order, viewed
from fuseline.passes.constants import number
from fuseline.passes.expert_products import lie_within
from fuseline.passes.expert_rows import is_running, uncast, unexpanded
from fuseline.passes.wording import called


def adapter_miss(op: Op) -> str:
    """Why an op that looks like the second product of adapters is not raised; empty where it does
    not look like one.
    """
    if isinstance(op, Matmul) and (reason := _matrices_first(op) or _one_hot(op)):
        return reason
    up = adapter_product(op)
    return "" if up is None else _between(up)


def _is_routed(ids: Value, stack: Value) -> bool:
    """Whether a router chose: these are experts."""
    count = stack.shape[0]
    return isinstance(count, int) and lie_within(uncast(ids), count)


def _source(value: Value) -> Value:
    """What a value was before views and casts."""
    while isinstance(value.owner, (Reshape, Permute, Expand, Cast)):
        value = value.owner.x
    return value


def _is_given(value: Value) -> bool:
    """Whether a stack of matrices is an argument, and not what activations were gathered of."""
    return _source(value).owner is None


# -- the matrices of an adapter are multiplied first --------------------------------------------


def _matrices_first(op: Matmul) -> str:
    one, other = gathered(op.lhs), gathered(op.rhs)
    if one is None or other is None or viewed(one.ids) is not viewed(other.ids):
        return ""
    if not (_is_given(one.values) and _is_given(other.values)) or _is_routed(one.ids, one.values):
        return ""
    return (
        f"the matrices that are gathered of {called(_source(one.values))} and "
        f"{called(_source(other.values))} are multiplied by one another, and rows by the outcome: "
        "multiply rows by one after the other"
    )


# -- something is done to columns between the products ------------------------------------------


def _between(up: AdapterProduct) -> str:
    """``((x @ A) * mask) @ B``: adapters of several ranks, in matrices of the largest."""
    value, reason = up.rows, ""
    while (op := value.owner) is not None:
        down = adapter_product(op)
        if down is not None:
            alike = viewed(down.numbers.value) is viewed(up.numbers.value)
            return reason if alike and not _is_routed(up.numbers.value, up.stack.values) else ""
        match op:
            case Cast() | Mul() | Where():
                step = _before(op, up.depth)
                if step is None:
                    return ""
                value, reason = step[0], reason or step[1]
            case _ if keeps_order(op):
                value = op.operands[0]
            case _:
                return ""
    return ""


def _before(op: Cast | Mul | Where, width: Dim) -> tuple[Value, str] | None:
    """What an op scales, casts or masks, and why that is not done between two products."""
    match op:
        case Cast(x):
            return x, ""
        case Mul(lhs, rhs):
            pairs = ((lhs, rhs), (rhs, lhs))
        case Where(cond, x, other):
            pairs = tuple((a, cond) for a, b in ((x, other), (other, x)) if _is_zero(b))
    for rows, by in pairs:
        if number(by) is not None:
            return rows, ""
        if (table := _table(by)) is not None:
            of_rows = factor_of(by, rows, width) is not None
            return rows, (_of_rows(op, table) if of_rows else _of_columns(table))
    return None


def _is_zero(value: Value) -> bool:
    return number(unexpanded(value)) == 0


def _table(value: Value) -> Value | None:
    """An argument, what is gathered of one, or a comparison; None for other values."""
    source = _source(value)
    known = (Index, IndexSelect, Embedding, Lt, Le, Gt, Ge, Eq, Ne)
    return source if source.owner is None or isinstance(source.owner, known) else None


def _of_columns(table: Value) -> str:
    return (
        f"{called(table)} scales or masks columns between the products: matrices that are padded "
        "with zeros need no mask"
    )


def _of_rows(op: Op, table: Value) -> str:
    if isinstance(op, Mul):
        return ""
    return f"{called(table)} masks rows between the products: mask the outcome"


# -- adapters are chosen by products with one-hot rows ------------------------------------------


class _Choice(NamedTuple):
    """A product by the matrices of adapters that one-hot rows choose."""

    rows: Value
    ids: Value
    stack: Value
    how: str


def _one_hot(op: Matmul) -> str:
    up = _choice(op)
    if up is None or _is_routed(up.ids, up.stack):
        return ""
    value = up.rows
    while (owner := value.owner) is not None:
        down = _choice(owner) if isinstance(owner, Matmul) else None
        if down is not None:
            return up.how if down.ids is up.ids else ""
        match owner:
            case Reshape(x) | Permute(x) | Expand(x) | Cast(x):
                value = x
            case Mul(lhs, rhs) if number(rhs) is not None or number(lhs) is not None:
                value = rhs if number(lhs) is not None else lhs
            case _:
                return ""
    return ""


def _choice(op: Matmul) -> _Choice | None:
    for one, other in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
        if (ids := _chosen(one)) is not None:  # (rows by all of them) by one-hot rows
            product = _source(other).owner
            if isinstance(product, Matmul):
                for rows, stack in ((product.lhs, product.rhs), (product.rhs, product.lhs)):
                    if _is_stack(stack):
                        how = "rows are multiplied by every matrix, and one-hot rows choose one"
                        return _Choice(rows, ids, _source(stack), f"{how}: {_ADVICE}")
        for ids, stack in _picks(other):  # rows by (one-hot rows by all matrices)
            how = f"one-hot rows are multiplied by all of {called(stack)} to choose matrices"
            return _Choice(one, ids, stack, f"{how}: {_ADVICE}")
    return None


_ADVICE = "gather them by index"


def _picks(matrices: Value) -> Iterator[tuple[Value, Value]]:
    """The numbers and the stack of matrices that products with one-hot rows choose."""
    owner = _source(matrices).owner
    if isinstance(owner, Sum):
        owner = owner.x.owner
    if isinstance(owner, (Matmul, Mul)):
        for table, stack in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
            ids = _chosen(table)
            if ids is not None and _is_stack(stack):
                yield ids, _source(stack)


def _is_stack(value: Value) -> bool:
    source = _source(value)
    return source.owner is None and len(source.shape) == 3


def _chosen(table: Value) -> Value | None:
    """The numbers whose one-hot rows a value has."""
    owner = _source(table).owner
    if not isinstance(owner, Eq):
        return None
    for ids, running in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
        if is_running(uncast(unexpanded(running))):
            return uncast(unexpanded(ids))
    return None


__all__ = ["adapter_miss"]
