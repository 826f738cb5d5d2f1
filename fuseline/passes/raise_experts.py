"""Recognise routed experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.experts import Experts
from fuseline.ir.ops.matmul import GroupedMatmul, Matmul
from fuseline.ir.ops.pointwise import Add, Cast, Mul
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import DType, same
from fuseline.passes.canonical_casts import is_exact
from fuseline.passes.expert_body import Body, Refused, body_between, check_readers
from fuseline.passes.expert_chain import raised_chain
from fuseline.passes.expert_dense import raised_dense
from fuseline.passes.expert_kernels import as_given, unfit
from fuseline.passes.expert_masks import PICKING, raised_masks
from fuseline.passes.expert_products import (
    Biased,
    Product,
    is_product,
    lie_within,
    oriented,
    product_of,
    with_bias,
)
from fuseline.passes.expert_rows import as_grid, as_matrix, token_rows, uncast_once, unshaped
from fuseline.passes.expert_sum import Summed, Weight, summed, weight_of
from fuseline.passes.expert_walk import ops_after, ops_before
from fuseline.passes.match import reshaped
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import called


@dataclass(frozen=True)
class RaiseExperts(Rewrite[Op], root=(GroupedMatmul, Matmul, Add, *PICKING), pattern="moe"):
    """Products of tokens by the matrices of their experts, weighed and added up, become `experts`.

    The rows of a token stand in the order of its slots and are multiplied by matrices gathered for
    each, or they are sorted by expert and multiplied group by group.

    Before:
        func @f(%x: f32[T, 8], %l: f32[T, 5], %w: f32[5, 24, 8], %d: f32[5, 8, 12]) {
          %s, %i = topk %l {k = 2, axis = 1}
          %ids = reshape %i {shape = (<2*T>,)}
          %x1 = reshape %x {shape = (T, 1, 8)}
          %x2 = expand %x1 {shape = (T, 2, 8)}
          %rows = reshape %x2 {shape = (<2*T>, 8, 1)}
          %wg = index %w, [%ids] {axes = (0,)}
          %p = matmul %wg, %rows
          %h = reshape %p {shape = (<2*T>, 24)}
          %g = slice %h {axis = 1, stop = 12}
          %u = slice %h {axis = 1, start = 12, stop = 24}
          %a = silu %g
          %m = mul %a, %u
          %inner = reshape %m {shape = (<2*T>, 12, 1)}
          %dg = index %d, [%ids] {axes = (0,)}
          %q = matmul %dg, %inner
          %o = reshape %q {shape = (<2*T>, 8)}
          %s1 = reshape %s {shape = (<2*T>, 1)}
          %ow = mul %o, %s1
          %grid = reshape %ow {shape = (T, 2, 8)}
          %y = sum %grid {axes = (1,)}
          return %y
        }
    After:
        func @f(%x: f32[T, 8], %l: f32[T, 5], %w: f32[5, 24, 8], %d: f32[5, 8, 12]) {
          %s, %i = topk %l {k = 2, axis = 1}
          %y = experts %x, %i, %s, [%w], [%d] {
            experts = 5, dtype = f32, body = func @body(%gate: f32[12], %up: f32[12]) {
              %a = silu %gate
              %m = mul %a, %up
              return %m
            }
          }
          return %y
        }

    Before:
        func @f(%x: f32[T, 8], %l: f32[T, 5], %w: f32[5, 8, 12], %d: f32[5, 12, 8]) {
          %s, %i = topk %l {k = 2, axis = 1}
          %ids = reshape %i {shape = (<2*T>,)}
          %sw = reshape %s {shape = (<2*T>,)}
          %sorted, %perm = sort %ids {axis = 0}
          %two = full {value = 2, dtype = i64}
          %token = floor_div %perm, %two
          %rows = index %x, [%token] {axes = (0,)}
          %weights = index %sw, [%perm] {axes = (0,)}
          %float = cast %sorted {dtype = f32}
          %counts = aten.call [%float] {
            target = "aten.histc.default", args = ($0, 5, 0, 4), types = (f32[5],)
          }
          %ints = cast %counts {dtype = i32}
          %sums = cumsum %ints {axis = 0}
          %ends = cast %sums {dtype = i32}
          %h = grouped_matmul %rows, %w, %ends
          %m = relu %h
          %o = grouped_matmul %m, %d, %ends
          %w1 = reshape %weights {shape = (<2*T>, 1)}
          %ow = mul %o, %w1
          %empty = full {value = 0, shape = (<2*T>,), dtype = i64}
          %iota = iota {length = <2*T>}
          %inverse = index_put %empty, [%perm], %iota {axes = (0,)}
          %back = index %ow, [%inverse] {axes = (0,)}
          %grid = reshape %back {shape = (T, 2, 8)}
          %y = sum %grid {axes = (1,)}
          return %y
        }
    After:
        func @f(%x: f32[T, 8], %l: f32[T, 5], %w: f32[5, 8, 12], %d: f32[5, 12, 8]) {
          %s, %i = topk %l {k = 2, axis = 1}
          %y = experts %x, %i, %s, [%w], [%d] {
            experts = 5, gated = false, transposed = true, dtype = f32,
            body = func @body(%up: f32[12]) {
              %m = relu %up
              return %m
            }
          }
          return %y
        }
    """

    reorders = True  # the product of one expert's rows may be summed in another order

    def rewrite(self, op: Op, func: Func) -> Replace | NoMatch | None:
        held: list[str] = []
        try:
            if is_product(op):
                return _raised(op, func, held)
            if isinstance(op, Add):
                return _replaced(raised_chain(op, func), func, "the weights can be packed")
            if isinstance(op, PICKING):
                return _looped(raised_masks(op, func), func)
            return _replaced(raised_dense(op, func), func)
        except Refused as refused:
            return NoMatch(str(refused), held=held)


@dataclass(frozen=True)
class Input:
    """What the experts' rows are copies of: x, T rows, and the weight that it is multiplied by."""

    x: Value
    weight: Weight | None


def _raised(op: Op, func: Func, held: list[str]) -> Replace | NoMatch | None:
    """Experts by their products; ``held`` is told of each predicate that holds."""
    product = product_of(op, func)
    if any(_same_slots(other, product, func) for other in _products_before(product.rows)):
        return None  # the second product: the first one is the root
    after = next((op for op, _ in ops_after(func, product.y) if is_product(op)), None)
    if after is None:
        raise Refused(
            f"no second product by experts' matrices reads {called(product.y)} by way of "
            "element-wise ops"
        )
    down = product_of(after, func)
    before = sorted(_products_before(down.rows), key=func.places.__getitem__)
    if op is not before[0]:
        return None
    ups = [product_of(other, func) for other in before]
    held.append(_PRODUCTS)
    _check_together(ups, down)
    held.append(_TOGETHER)
    sides = [with_bias(up, func) for up in ups]
    last = with_bias(down, func)
    body = body_between([s.y for s in sides], [up.width for up in ups], down.rows)
    held.append(_BETWEEN)
    end = summed(func, last.y, down.slots, down.width)
    held.append(_SUMMED)
    inside = {*body.inside, *end.inside, *last.inside, *(o for s in sides for o in s.inside)}
    check_readers(func, inside, end.y)
    held.append(_ALONE)
    given = _input(ups, end)
    fused = _experts(given, ups, sides, down, last, body, end)
    return _replace(end.y, fused, func, held)


def _replaced(
    found: tuple[Value, Experts] | None, func: Func, *held: str
) -> Replace | NoMatch | None:
    """Experts that compute every token by the op that computes the chosen ones."""
    if found is None:
        return None
    true = ("experts that were not chosen give exactly 0", "nothing else reads what they give")
    return _replace(*found, func, (*true, *held))


def _replace(end: Value, raised: Experts, func: Func, held: Sequence[str]) -> Replace | NoMatch:
    """The op in the place of a sum, where a kernel takes it."""
    fused = as_given(raised)
    if reason := unfit(fused, func):
        return NoMatch(reason, held=held)
    y = reshaped(fused.y, end.shape)
    return Replace({end: y}, before=end.owner, held=(*held, "a kernel takes them"))


def _looped(found: tuple[Value, Experts] | None, func: Func) -> Replace | NoMatch | None:
    """Experts that compute their own tokens by the op that computes those of all."""
    return None if found is None else _replace(*found, func, _HELD_OF_LOOPS)


_HELD_OF_LOOPS = (
    "each expert reads the rows of the tokens that chose it, and adds to the same rows",
    "the experts are all that can be chosen, in the order of their numbers",
    "nothing else reads what they give",
)


_PRODUCTS = "each row is a token's, multiplied by the matrices of its expert, twice"
_TOGETHER = "the products are of the same rows and experts"
_BETWEEN = "only element-wise ops are between the products"
_SUMMED = "the rows of a token are added up"
_ALONE = "nothing else reads what is between"


def _products_before(value: Value) -> list[Op]:
    return [op for op in ops_before(value) if is_product(op)]


def _same_slots(op: Op, product: Product, func: Func) -> bool:
    try:
        return product_of(op, func).slots == product.slots
    except Refused:
        return False


def _check_together(ups: Sequence[Product], down: Product) -> None:
    """The products must be of the same slots and the same experts."""
    for up in ups:
        if up.slots != down.slots:
            raise Refused("the two products are of different experts, or in different orders")
        if up.experts != down.experts:
            raise Refused(f"{up.experts} experts in one product, {down.experts} in another")
        if up.y.dtype is not down.y.dtype:
            raise Refused(f"the products are {up.y.dtype} and {down.y.dtype}")
    if not lie_within(down.slots.ids, down.experts):
        raise Refused(
            f"the experts' numbers come from {called(down.slots.ids)}, which does not choose "
            f"among {down.experts}: they may lie outside"
        )


def _input(ups: Sequence[Product], end: Summed) -> Input:
    """What the rows of the first products are copies of."""
    rows, slots = ups[0].rows, ups[0].slots
    if any(up.per_token for up in ups):
        x = as_matrix(unshaped(rows), ups[0].depth)
        if not all(up.per_token for up in ups) or not same(x.shape[0], end.tokens):
            raise Refused(f"{called(rows)} is each token once for one product, not for another")
        return Input(x, None)
    if any(up.rows is not rows and unshaped(up.rows) is not unshaped(rows) for up in ups):
        raise Refused("gate and up read different rows")
    rows, weight = unshaped(rows), None
    if token_rows(uncast_once(rows), slots, end.k) is None and end.weight is None:
        rows, weight = _weighed(rows, ups[0])
    x = token_rows(uncast_once(rows), slots, end.k)
    if x is None:
        raise Refused(f"the rows come from {called(rows)}, which does not copy each token's row")
    x = as_matrix(x, ups[0].depth)
    if not same(x.shape[0], end.tokens):
        raise Refused(f"x has {x.shape[0]} rows, the sum has {end.tokens}")
    if x.dtype is not ups[0].y.dtype:
        if weight is not None:
            raise Refused(f"x is {x.dtype} and is weighed before it is cast to {ups[0].y.dtype}")
        x = Cast(x, dtype=ups[0].y.dtype).y
    return Input(x, weight)


def _weighed(rows: Value, up: Product) -> tuple[Value, Weight]:
    """Rows that are multiplied by their weights: what they were before, and the weights."""
    owner = uncast_once(rows).owner
    if not isinstance(owner, Mul):
        raise Refused(f"the rows come from {called(rows)}, which does not copy each token's row")
    reasons: list[str] = []
    for inner, weight in ((owner.lhs, owner.rhs), (owner.rhs, owner.lhs)):
        try:
            found = weight_of(weight, inner, up.slots, owner.y.dtype)
        except Refused as refused:
            reasons.append(str(refused))
            continue
        source = uncast_once(inner)
        plain = source.dtype is up.y.dtype and is_exact(source.dtype, inner.dtype)
        if plain and is_exact(up.y.dtype, owner.y.dtype):
            return source, found
        raise Refused(f"x is {source.dtype}, weighed in {owner.y.dtype} for a {up.y.dtype} product")
    raise Refused(reasons[0])


def _experts(
    given: Input,
    ups: Sequence[Product],
    sides: Sequence[Biased],
    down: Product,
    last: Biased,
    body: Body,
    end: Summed,
) -> Experts:
    """The op; matrices that are not all turned alike are, by a view (see `as_given`)."""
    if given.weight is not None and end.weight is not None:
        raise Refused("both what goes into the experts and what comes out of them is weighed")
    weight = given.weight or end.weight
    if weight is None:
        raise Refused("neither what goes into the experts nor what comes out of them is weighed")
    turned = down.transposed
    return Experts(
        given.x,
        as_grid(down.slots.ids, end.tokens, end.k, DType.I64),
        weight.grid(end.tokens, end.k, given.x.dtype),
        tuple(oriented(up.weight, turn=up.transposed is not turned) for up in ups),
        (down.weight,),
        _joined([side.bias for side in sides]),
        last.bias,
        experts=down.experts,
        body=body.func,
        gated=body.gated,
        interleaved=body.interleaved,
        transposed=turned,
        weigh="output" if given.weight is None else "input",
        dtype=end.dtype,
    )


def _joined(biases: Sequence[Value | None]) -> Value | None:
    """The bias of gate and up together."""
    given = [b for b in biases if b is not None]
    if not given:
        return None
    if len(given) < len(biases):
        raise Refused("only one of gate and up has a bias")
    return given[0] if len(given) == 1 else Concat(tuple(given), axis=1).y
