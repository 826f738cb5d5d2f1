"""Experts in a loop, each on the tokens that chose it: picked by a mask, and added where they were.

The loop is a chain of additions into one tensor of zeros. Each adds the products of one expert to
the rows of its tokens, whose number only the data tells. In the op that takes its place no such
number is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Ref, Value
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.experts import Experts, Weigh
from fuseline.ir.ops.index import IndexPut
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.ops.pointwise import Add, Cast, Mul
from fuseline.ir.ops.view import Concat, Permute, Slice
from fuseline.ir.types import DType, promote, same
from fuseline.passes.constants import is_number
from fuseline.passes.expert_body import Refused, body_between, check_readers
from fuseline.passes.expert_gate import are_distinct
from fuseline.passes.expert_own import Mlp, Product, check_alike, check_packable, stacked_biases
from fuseline.passes.expert_picks import Picked, by_columns, by_mask, picked
from fuseline.passes.expert_products import lie_within, oriented
from fuseline.passes.expert_rows import unexpanded, unshaped
from fuseline.passes.expert_tokens import Link, Tokens, Weighed, plain
from fuseline.passes.expert_walk import ops_before
from fuseline.passes.match import reshaped
from fuseline.passes.wording import called

_LEAST = 2
"""How many experts there must be for a chain of additions to look like them."""

PICKING = (AtenCall, IndexPut)
"""The ops that add to picked rows."""


@dataclass(frozen=True)
class Expert:
    """One expert of the loop, understood; without ``mlp`` one that passes its rows on."""

    x: Value
    mlp: Mlp | None
    weighed: Weighed
    weigh: Weigh
    inside: frozenset[Op]


def raised_masks(op: Op, func: Func) -> tuple[Value, Experts] | None:
    """The last addition of a loop over experts, and the op to take its place.

    None where it does not look like experts.

    Raises:
        Refused: it does, and a predicate fails.

    """
    last = _link(op)
    if last is None:
        return None
    end = op.results[0]
    readers = [_link(user) for user in func.users(end)]
    if any(link is not None and link.total is end for link in readers):
        return None  # not the last one
    links, begin = _chain(last)
    if len(links) < _LEAST:
        return None
    tokens = Tokens.of(links[0], end)
    for link in links:
        tokens.check(link)
    if not is_number(begin, 0):
        raise Refused(f"the sum of the experts begins with {called(begin)}, not with zeros")
    _check_order(links, tokens)
    experts = [_expert(link, tokens) for link in links]
    _check_alike(experts)
    inside = {o for link in links for o in (link.op, *link.inside)}
    inside.update(o for e in experts for o in e.inside)
    check_readers(func, inside, end)
    return end, _op(func, experts, tokens, end)


# -- the chain --------------------------------------------------------------------------------


def _chain(last: Link) -> tuple[list[Link], Value]:
    """The additions from the first one on, and what they begin with."""
    links = [last]
    while links[0].total.owner is not None and (link := _link(links[0].total.owner)) is not None:
        links.insert(0, link)
    return links, links[0].total


def _link(op: Op) -> Link | None:
    """An addition to the rows where an expert was chosen; None where an op is none."""
    match op:
        case AtenCall(
            (total, index, rows), target="aten.index_add.default", args=(Ref(0), 0, Ref(1), Ref(2))
        ) if not op.kwargs:
            return _added(op, rows, by_columns(total, {0: index}))
        case AtenCall(
            (total, index, rows),
            target="aten.scatter_add.default",
            args=(Ref(0), 0, Ref(1), Ref(2)),
        ) if _is_column(index) and index.shape == rows.shape:
            return _added(op, rows, by_columns(total, {0: unexpanded(index)}))
        case AtenCall(
            (total, condition, rows),
            target="aten.index_put.default",
            args=(Ref(0), (Ref(1),), Ref(2), *rest),
        ) if not op.kwargs and rest in ([], [False]):
            return _written(op, rows, by_mask(total, condition))
        case IndexPut(total, indices, rows, axes=axes, accumulate=accumulate):
            place = by_columns(total, dict(zip(axes, indices, strict=True)))
            return _added(op, rows, place) if accumulate else _written(op, rows, place)
        case _:
            return None


def _is_column(index: Value) -> bool:
    """Whether an index is the same for all columns."""
    return unexpanded(index).shape == (index.shape[0], 1)


def _added(op: Op, rows: Value, place: Picked | None) -> Link | None:
    return None if place is None else Link(op, rows, place)


def _written(op: Op, rows: Value, place: Picked | None) -> Link | None:
    """``total[place] = rows``, where the rows may be what was there and something more."""
    if place is None or not isinstance(rows.owner, Add):
        return None if place is None else Link(op, rows, place, written=True)
    for there, more in ((rows.owner.lhs, rows.owner.rhs), (rows.owner.rhs, rows.owner.lhs)):
        owner = there.owner
        if owner is not None and picked(there) == place and more.dtype is place.source.dtype:
            return Link(op, more, place, inside=(rows.owner, owner))
    return Link(op, rows, place, written=True)


def _check_order(links: Sequence[Link], tokens: Tokens) -> None:
    """The experts must be all that can be chosen, in the order of their numbers."""
    order = [link.place.mask.expert for link in links]
    if order != list(range(len(links))):
        raise Refused(f"the experts are added in the order {order}")
    indices = tokens.indices
    if not lie_within(indices, len(links)):
        raise Refused(
            f"the experts' numbers come from {called(indices)}, which does not choose among the "
            f"{len(links)} of the loop"
        )
    if tokens.slots is not None and not are_distinct(indices):
        raise Refused(f"{called(indices)} may choose an expert twice for one token")
    for number, link in enumerate(links):
        if link.written and number and tokens.slots is not None:
            raise Refused(f"expert {number} writes over what the ones before it gave to its tokens")


# -- one expert -------------------------------------------------------------------------------


def _expert(link: Link, tokens: Tokens) -> Expert:
    number = link.place.mask.expert
    rows, inside = link.rows, set[Op]()
    if isinstance(rows.owner, Cast) and rows.owner.x.dtype.is_float:
        inside.add(rows.owner)
        rows = rows.owner.x
    if (passing := _passing_on(rows, link, tokens, inside)) is not None:
        return passing
    down, weighed = _weighed_output(rows, link, tokens, inside)
    if down is None:
        down = _product(rows)
    if down is None:
        raise Refused(f"what expert {number} adds comes from {called(rows)}, not from a product")
    ups = [up for op in ops_before(down.x) if (up := _product_of(op)) is not None]
    if not ups:
        raise Refused(
            f"what the last product of an expert reads, {called(down.x)}, is no product's"
        )
    body = body_between([up.y for up in ups], [up.width for up in ups], down.x)
    if any(up.x is not ups[0].x for up in ups):
        raise Refused(f"the products of expert {number} read different rows")
    given, weigh = ups[0].x, "output"
    if weighed is None:
        given, weighed = _weighed_input(given, link, tokens, inside)
        weigh = "input"
    x = tokens.rows(given, link)
    if x is None:
        raise Refused(
            f"expert {number} reads {called(given)}, which does not pick the rows of its tokens"
        )
    inside |= {*body.inside, down.op, *(up.op for up in ups)}
    return Expert(x, Mlp(tuple(ups), down, body), weighed, weigh, frozenset(inside))


def _passing_on(rows: Value, link: Link, tokens: Tokens, inside: set[Op]) -> Expert | None:
    """The expert that rows are of, where these are picked rows of x times their weights."""
    owner = rows.owner
    if not isinstance(owner, Mul):
        return None
    for weight, given in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
        wide = given.owner if isinstance(given.owner, Cast) else None
        source = given if wide is None else wide.x
        x, weighed = tokens.rows(source, link), tokens.weights(weight, link)
        alike = owner.y.dtype is promote([weight.tensor, source.tensor])
        if x is not None and weighed is not None and alike:
            inside.update([owner] if wide is None else [owner, wide])
            return Expert(x, None, weighed, "output", frozenset(inside))
    return None


def _weighed_output(
    rows: Value, link: Link, tokens: Tokens, inside: set[Op]
) -> tuple[Product | None, Weighed | None]:
    """The product that rows are, times their weights."""
    owner = rows.owner
    if not isinstance(owner, Mul):
        return None, None
    for weight, given in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
        wide = given.owner if isinstance(given.owner, Cast) else None
        down = _product(given if wide is None else wide.x)
        if down is None or weight.shape[1:] != (1,):
            continue
        if owner.y.dtype is not promote([weight.tensor, down.y.tensor]):
            raise Refused(f"products of {down.y.dtype} are weighed in {owner.y.dtype}")
        weighed = tokens.weights(weight, link)
        if weighed is None:
            raise Refused(
                f"expert {link.place.mask.expert} is weighed by {called(weight)}, which does not "
                "pick the weights of its tokens"
            )
        inside.update([owner] if wide is None else [owner, wide])
        return down, weighed
    return None, None


def _weighed_input(
    rows: Value, link: Link, tokens: Tokens, inside: set[Op]
) -> tuple[Value, Weighed]:
    """The rows of tokens before they are multiplied by their weights."""
    product_ = rows.owner.x if isinstance(rows.owner, Cast) else rows
    owner = product_.owner
    if isinstance(owner, Mul):
        for weight, given in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
            wide = given.owner if isinstance(given.owner, Cast) else None
            source = given if wide is None else wide.x
            weighed = tokens.weights(weight, link)
            alike = owner.y.dtype is promote([weight.tensor, source.tensor])
            if weighed is not None and source.dtype is rows.dtype and alike:
                inside.update(o for o in (owner, rows.owner, wide) if o is not None)
                return source, weighed
    raise Refused(f"nothing weighs expert {link.place.mask.expert}")


def _product(value: Value) -> Product | None:
    """The product of rows by one matrix that a value is."""
    owner = unshaped(value).owner
    return None if owner is None else _product_of(owner)


def _product_of(op: Op) -> Product | None:
    match op:
        case Linear(x, weight, bias) if isinstance(weight.owner, Permute):
            return Product(op, x, weight.owner.x, bias, transposed=True)
        case Linear():
            return Product.of(op)
        case Matmul(x, weight) if weight.tensor.rank == 2:
            turned = weight.owner
            if isinstance(turned, Permute):
                return Product(op, x, turned.x)
            return Product(op, x, weight, transposed=True)
        case _:
            return None


def _check_alike(experts: Sequence[Expert]) -> None:
    """All experts must do the same to the same x."""
    first = experts[0]
    if first.mlp is None:
        raise Refused("expert 0 has no products")
    for number, expert in enumerate(experts):
        if expert.x is not first.x:
            raise Refused(f"expert {number} reads another x")
        if expert.mlp is not None:
            if number and experts[number - 1].mlp is None:
                raise Refused(f"expert {number} has products, and the one before it has none")
            check_alike(number, expert.mlp, first.mlp)
        if plain(expert.weighed.values) is not plain(first.weighed.values):
            raise Refused(f"expert {number} is weighed by other weights than the first")
        if (expert.weigh, expert.weighed.casts) != (first.weigh, first.weighed.casts):
            raise Refused(f"expert {number} is weighed in another way than the first")


# -- the op -----------------------------------------------------------------------------------


def _op(func: Func, experts: Sequence[Expert], tokens: Tokens, end: Value) -> Experts:
    first, count = experts[0], tokens.count
    mlps = [e.mlp for e in experts if e.mlp is not None]
    ups = [[mlp.ups[j] for mlp in mlps] for j in range(len(mlps[0].ups))]
    downs = [mlp.down for mlp in mlps]
    body, turned, down_turned = mlps[0].body, ups[0][0].transposed, downs[0].transposed
    packed = [_oriented(column, turned) for column in ups]
    packed.append(_packed([down.weight for down in downs]))
    if any(weight is None for weight in packed):
        check_packable(func, mlps)
        up = tuple(p.weight for mlp in mlps for p in mlp.ups)
        down: tuple[Value, ...] = tuple(p.weight for p in downs)
    else:
        *up, last = (weight for weight in packed if weight is not None)
        up, down = tuple(up), (last,)
    depth = mlps[0].ups[0].x.shape[-1]
    grid = (count, tokens.k)
    indices = reshaped(tokens.indices, grid)
    return Experts(
        reshaped(first.x, (count, depth)),
        indices if indices.dtype is DType.I64 else Cast(indices, dtype=DType.I64).y,
        reshaped(first.weighed.grid, grid),
        up,
        down,
        _biases(ups),
        _biases([downs]),
        experts=len(mlps),
        identities=len(experts) - len(mlps),
        body=body.func,
        gated=body.gated,
        interleaved=body.interleaved,
        transposed=turned,
        down_transposed=None if down_turned is turned else down_turned,
        round_bias=False,
        weigh=first.weigh,
        combine="in_turn",
        dtype=end.dtype,
    )


def _oriented(products: Sequence[Product], transposed: bool) -> Value | None:
    """The tensor of which each product has one matrix; None where they are given one by one."""
    found = _packed([p.weight for p in products])
    turn = products[0].transposed is not transposed
    return None if found is None else oriented(found, turn=turn)


def _packed(parts: Sequence[Value]) -> Value | None:
    """The value whose first parts along the first axis these are, in their order."""
    sources: list[Value] = []
    for number, part in enumerate(parts):
        match unshaped(part).owner:
            case Slice(x, axis=0, start=start, stop=stop, step=1) if x.shape[1:] == part.shape:
                if (start, stop) != (number, number + 1):
                    return None
                sources.append(x)
            case _:
                return None
    if any(source is not sources[0] for source in sources):
        return None
    whole = same(sources[0].shape[0], len(parts))
    return sources[0] if whole else Slice(sources[0], axis=0, start=0, stop=len(parts)).y


def _biases(columns: Sequence[Sequence[Product]]) -> Value | None:
    """The biases of all experts, ``[E, N]``; None where there are none."""
    given = [[p.bias for p in column if p.bias is not None] for column in columns]
    packed = [found for biases in given if biases and (found := _packed(biases)) is not None]
    if len(packed) == len(columns):
        return packed[0] if len(packed) == 1 else Concat(tuple(packed), axis=1).y
    return stacked_biases([p for row in zip(*columns, strict=True) for p in row], len(columns[0]))
