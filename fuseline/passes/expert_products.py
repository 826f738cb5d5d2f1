"""Products of rows by the matrices of their experts: grouped by expert, or batched over slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Ref, Value
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.index import Index, IndexSelect
from fuseline.ir.ops.matmul import GroupedMatmul, Matmul
from fuseline.ir.ops.pointwise import Add, Cast, Eq
from fuseline.ir.ops.reduce import Argmax, Cumsum, Sort, Sum, TopK
from fuseline.ir.ops.view import Concat, Expand, Permute, Reshape, Slice
from fuseline.ir.types import Dim, dim, same
from fuseline.passes.expert_body import Refused
from fuseline.passes.expert_rows import (
    COUNTING,
    Slots,
    is_running,
    row_source,
    slots_of,
    sorted_slots,
    uncast,
    uncast_once,
    unexpanded,
    unshaped,
)
from fuseline.passes.match import other_operand
from fuseline.passes.wording import called

SWAPPED = (0, 2, 1)
"""The dims of experts' matrices, each turned."""


@dataclass(frozen=True)
class Product:
    """One product of rows ``[S, K]`` by experts' matrices: weight ``[E, N, K]``.

    Attributes:
        op: what computes it.
        y: its result, less its bias.
        rows: what is multiplied.
        weight: the matrices, ``[E, K, N]`` where ``transposed``.
        transposed: see there.
        slots: the expert of each row.
        per_token: whether the rows are the tokens' own, one for all slots of a token.
    """

    op: Op
    y: Value
    rows: Value
    weight: Value
    transposed: bool
    slots: Slots
    per_token: bool = False

    @property
    def experts(self) -> int:
        """How many matrices there are."""
        count = self.weight.shape[0]
        if not isinstance(count, int):
            raise Refused(f"{called(self.weight)} is {self.weight.type}, of any number of experts")
        return count

    @property
    def width(self) -> int:
        """How many columns the result has."""
        width = self.weight.shape[2 if self.transposed else 1]
        if not isinstance(width, int):
            raise Refused(f"{called(self.weight)} is {self.weight.type}, of an unknown width")
        return width

    @property
    def depth(self) -> int:
        """How many columns the rows have."""
        depth = self.weight.shape[1 if self.transposed else 2]
        if not isinstance(depth, int):
            raise Refused(f"{called(self.weight)} is {self.weight.type}, of an unknown depth")
        return depth


def is_product(op: Op) -> bool:
    """Whether an op looks like a product by experts' matrices."""
    return isinstance(op, GroupedMatmul) or (isinstance(op, Matmul) and _gathered(op) is not None)


def product_of(op: Op, func: Func) -> Product:
    """An op that `is_product`, understood.

    Raises:
        Refused: it does not multiply each row by the matrix of its expert.

    """
    if isinstance(op, GroupedMatmul):
        weight, transposed = _matrices(op.weight, grouped=True)
        slots = _grouped_slots(op, func)
        return Product(op, op.y, op.x, weight, transposed, slots)
    assert isinstance(op, Matmul), "no other op is a product"
    found = _gathered(op)
    assert found is not None, "asked before"
    return found


# -- batched over slots -------------------------------------------------------------------------


def _gathered(op: Matmul) -> Product | None:
    """``matrices[ids] @ x`` or ``x @ matrices[ids]``, a batch of products by one vector each."""
    for matrices, rows, left in ((op.lhs, op.rhs, True), (op.rhs, op.lhs, False)):
        one = rows.shape[-1 if left else -2] if len(rows.shape) == 3 else 0
        picked = _picked(matrices) if one == 1 else None
        if picked is None:
            continue
        weight, ids, swapped, per_token = picked
        if per_token and left:
            continue
        weight, turned = _turned(weight, swapped)
        # ``W @ x`` has W [N, K], ``x @ W`` has it [K, N]
        return Product(op, op.y, rows, weight, turned == left, slots_of(ids), per_token)
    return None


def _picked(matrices: Value) -> tuple[Value, Value, bool, bool] | None:
    """What matrices are gathered of, by which ids, whether they are swapped then, and whether those
    of one token are put side by side: ``[T, H, K * N]``.
    """
    value = unshaped(matrices)
    moved = value.owner if isinstance(value.owner, Permute) else None
    source = value if moved is None else moved.x
    dims = tuple(range(source.tensor.rank)) if moved is None else moved.dims
    match source.owner:
        case Index(weight, (ids,), axes=(0,)) | IndexSelect(weight, ids, axis=0):
            lead = ids.tensor.rank
        case _:
            return None
    if weight.tensor.rank != 3:
        return None
    plain = tuple(range(lead))
    rows, columns = lead, lead + 1
    for swapped, order in ((False, (rows, columns)), (True, (columns, rows))):
        if _moves_alike(source, dims, (*plain, *order)):
            fits = matrices.shape[1:] == tuple(source.shape[d] for d in order)
            return (weight, ids, swapped, False) if fits else None
    if lead != 2:
        return None
    for swapped, order in ((True, (columns, 1, rows)), (False, (rows, 1, columns))):
        if _moves_alike(source, dims, (0, *order)):
            width = dim(source.shape[1] * source.shape[order[-1]])
            fits = matrices.shape[1:] == (source.shape[order[0]], width)
            return (weight, ids, swapped, True) if fits else None
    return None


def _moves_alike(source: Value, dims: Sequence[int], others: Sequence[int]) -> bool:
    """Whether two permutations of a value's dims give the same elements in the same order."""
    first, second = ([d for d in order if source.shape[d] != 1] for order in (dims, others))
    return first == second


def _turned(weight: Value, swapped: bool) -> tuple[Value, bool]:
    """The matrices without a permute of their two dims, and whether one is left to do."""
    owner = weight.owner
    if isinstance(owner, Permute) and owner.dims == SWAPPED:
        return owner.x, not swapped
    return weight, swapped


def _matrices(weight: Value, *, grouped: bool) -> tuple[Value, bool]:
    """The experts' matrices of a grouped product, and whether they are ``[E, K, N]``."""
    owner = weight.owner
    if isinstance(owner, Permute) and owner.dims == SWAPPED:
        return owner.x, not grouped
    return weight, grouped


# -- grouped by expert --------------------------------------------------------------------------


def _grouped_slots(op: GroupedMatmul, func: Func) -> Slots:
    """The slots of a grouped product: where its groups end must follow from a sort of experts."""
    ends = uncast(op.ends)
    if not isinstance(ends.owner, Cumsum):
        raise Refused(f"where the groups end comes from {called(ends)}, not from a cumulative sum")
    count = op.weight.shape[0]
    counts = uncast(ends.owner.x)
    exact = ends.dtype in COUNTING and counts.dtype in COUNTING
    exact = exact and same(ends.owner.x.shape[ends.owner.axis], count)  # it adds up all of them
    ids = _counted(counts, count) if exact else None
    if ids is None:
        raise Refused(
            f"the cumulative sum is over {called(counts)} {counts.type}, "
            f"not over how often each of {count} experts was chosen"
        )
    sort = ids.owner
    if not isinstance(sort, Sort) or ids is not sort.values:
        sort = _sort_of(ids, func)  # counted before the sort, whose order does not matter for that
    if sort is None or sort.descending:
        raise Refused("the rows are grouped by expert, and nothing sorts them from the first on")
    if sort.x.tensor.rank != 1:
        raise Refused(f"the slots {sort.x.type} are sorted within each token, not all together")
    return sorted_slots(sort)


def _sort_of(ids: Value, func: Func) -> Sort | None:
    """The sort of some values, if there is just one."""
    readers = list(func.users(ids))
    for user in readers:
        if isinstance(user, (Cast, Reshape)) and user.y.dtype in COUNTING:
            readers += func.users(user.y)
    sorts = [user for user in readers if isinstance(user, Sort)]
    return sorts[0] if len(sorts) == 1 else None


def _counted(counts: Value, count: Dim) -> Value | None:
    """The ids of which ``counts`` has how often each of 0, 1, 2 ... occurs."""
    if not isinstance(count, int):
        return None
    match counts.owner:
        case AtenCall((x,), target="aten.histc.default", args=(Ref(0), bins, low, high)):
            fits = bins == count and low == 0 and high == count - 1
            return uncast(x) if fits else None
        case Sum(x, axes=(axis,)) if len(x.shape) == 2:
            return _one_hot(uncast_once(x), axis, count)
        case _:
            return None


def _one_hot(table: Value, axis: int, count: int) -> Value | None:
    """The ids of ``ids == 0, 1, 2 ...``, each along its own dim and the ids along ``axis``."""
    owner = table.owner
    if not isinstance(owner, Eq):
        return None
    for lhs, rhs in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
        ids, running = unexpanded(lhs), unexpanded(rhs)
        column = [1, 1]
        column[1 - axis] = count
        rows = [*table.shape]
        rows[1 - axis] = 1
        if _alike(running, column) and _alike(ids, rows) and is_running(uncast(running)):
            return uncast(ids)
    return None


def _alike(value: Value, shape: Sequence[Dim]) -> bool:
    """Whether a value has a shape, up to leading dims of extent 1."""
    missing = len(shape) - len(value.shape)
    return missing >= 0 and all(map(same, (*(1,) * missing, *value.shape), shape))


# -- around a product ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Biased:
    """A product with the bias of each row's expert, where there is one."""

    product: Product
    y: Value
    bias: Value | None
    inside: frozenset[Op]


def with_bias(product: Product, func: Func) -> Biased:
    """The product and the bias rows that are added to it alone."""
    y, inside = product.y, [product.op]
    users = func.users(y)
    if len(users) == 1 and isinstance(users[0], Reshape):
        inside.append(users[0])
        y = users[0].y
        users = func.users(y)
    if len(users) == 1 and isinstance(users[0], Add) and not func.is_returned(y):
        other = other_operand(users[0], y)
        picked = None if other is None else row_source(other)
        known = picked is not None and product.slots.are_ids(picked[1])
        if known and picked is not None and users[0].y.type == y.type:
            return Biased(product, users[0].y, picked[0], frozenset([*inside, users[0]]))
    return Biased(product, product.y, None, frozenset([product.op]))


def oriented(weight: Value, *, turn: bool) -> Value:
    """Experts' matrices, each turned or as they are."""
    return Permute(weight, dims=SWAPPED).y if turn else weight


def lie_within(value: Value, count: int) -> bool:
    """Whether whole numbers are shown by what makes them to lie in ``0 .. count``."""
    op = value.owner
    match op:
        case TopK(x, axis=axis) | Sort(x, axis=axis):
            extent = x.shape[axis]
            return value is op.indices and isinstance(extent, int) and extent <= count
        case Argmax(x, axis=axis):
            extent = x.shape[axis]
            return isinstance(extent, int) and extent <= count
        case Cast(x):
            return value.dtype in COUNTING and lie_within(x, count)
        case Reshape(x) | Slice(x) | Expand(x) | Permute(x):
            return lie_within(x, count)
        case Concat(xs):
            return all(lie_within(x, count) for x in xs)
        case _:
            return False
