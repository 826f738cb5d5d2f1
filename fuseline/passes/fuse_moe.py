"""Fuse a mixture of experts: router, routed experts, and the branch that all tokens share."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.experts import Experts, Moe, Route
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Add, Cast
from fuseline.ir.ops.view import Reshape
from fuseline.passes.expert_body import Refused
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.merge_linears import unpackable
from fuseline.passes.moe_beside import Beside, beside
from fuseline.passes.moe_sum import End, Projections, end_of
from fuseline.passes.raise_route import describe, selection
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.shared_branch import Shared, shared_branch
from fuseline.passes.wording import maker


@dataclass(frozen=True)
class FuseMoe(Rewrite[Experts], root=Experts, pattern="moe"):
    """Make one op of routed experts and of the shared branch, an MLP of the same x, beside them.

    The branch may be weighed by the sigmoid of a product, what the experts give and the sum each by
    a factor. Where the branch reads something else, or has a form that the op does not, it stays,
    and the site says why. Whether the branch runs as one more expert or beside the others is for
    the kernel to decide.

    Experts may work in a width of their own, between two projections. The branch then reads what
    the first one reads, and is added to what the second one gives: it cannot be the op's, but
    belongs to the site, as the projections and the router's product do. All of them are put in
    anew over one x, so that later passes merge the products that read it, and add in the epilogue
    of the second projection.

    Before:
        func @f(%x: f32[T, 8], %i: i64[T, 2], %w: f32[T, 2], %u: f32[5, 6, 8], %d: f32[5, 8, 6],
                %sg: f32[7, 8] = param "sg", %su: f32[7, 8] = param "su", %sd: f32[8, 7]) {
          %r = experts %x, %i, %w, [%u], [%d] {experts = 5, gated = false, dtype = f32,
            body = func @body(%h: f32[6]) {
              %a = relu %h
              return %a
            }}
          %s = gated_mlp %x, %sg, %su, %sd
          %y = add %r, %s
          return %y
        }
    After:
        func @f(%x: f32[T, 8], %i: i64[T, 2], %w: f32[T, 2], %u: f32[5, 6, 8], %d: f32[5, 8, 6],
                %sg: f32[7, 8] = param "sg", %su: f32[7, 8] = param "su", %sd: f32[8, 7]) {
          %y = moe %x, %i, %w, [%u], [%d], _, _, [%sg, %su], %sd {experts = 5, gated = false,
            dtype = f32,
            body = func @body(%h: f32[6]) {
              %a = relu %h
              return %a
            },
            shared_body = func @body(%gate: f32[7], %up: f32[7]) {
              %b = silu %gate
              %m = mul %b, %up
              return %m
            }}
          return %y
        }

    Before:
        func @f(%x: f32[B, S, 9], %i: i64[B*S, 2], %w: f32[B*S, 2], %u: f32[5, 6, 8],
                %d: f32[5, 8, 6], %into: f32[8, 9] = param "into", %back: f32[9, 8],
                %su: f32[7, 9] = param "su", %sd: f32[9, 7]) {
          %t = reshape %x {shape = (<B*S>, 9)}
          %l = linear %t, %into
          %r = experts %l, %i, %w, [%u], [%d] {experts = 5, gated = false, dtype = f32,
            body = func @body(%h: f32[6]) {
              %a = relu %h
              return %a
            }}
          %p = linear %r, %back
          %q = reshape %p {shape = (B, S, 9)}
          %h = linear %x, %su
          %a = relu %h
          %s = linear %a, %sd
          %y = add %q, %s
          return %y
        }
    After:
        func @f(%x: f32[B, S, 9], %i: i64[B*S, 2], %w: f32[B*S, 2], %u: f32[5, 6, 8],
                %d: f32[5, 8, 6], %into: f32[8, 9] = param "into", %back: f32[9, 8],
                %su: f32[7, 9] = param "su", %sd: f32[9, 7]) {
          %t = reshape %x {shape = (<B*S>, 9)}
          %l = linear %t, %into
          %h = linear %t, %su
          %a = relu %h
          %s = linear %a, %sd
          %r = moe %l, %i, %w, [%u], [%d] {experts = 5, gated = false, dtype = f32,
            body = func @body(%h: f32[6]) {
              %a = relu %h
              return %a
            }}
          %p = linear %r, %back
          %q = add %s, %p
          %y = reshape %q {shape = (B, S, 9)}
          return %y
        }
    """

    def rewrite(self, op: Experts, func: Func) -> Replace | NoMatch | None:
        if isinstance(op, Moe):
            return None
        for values in (op.up, op.down):
            reasons = [unpackable(func, v, "weight") for v in values if len(values) > 1]
            if any(reasons):
                return NoMatch(next(r for r in reasons if r))
        details = {"experts": _geometry(op), "activation": _words(op.body)}
        values, routed = _with_own_route(op, details)
        end = end_of(op, func)
        if end.projections is not None:
            details["latent"] = str(end.projections)
            moe = _moe(routed, op, None, end)
            values |= _between_projections(op, end, end.projections, moe, details, func)
        else:
            shared = _shared(op, end, details, func)
            moe = _moe(routed, op, shared, end)
            old = op.y if shared is None else end.y
            values[old] = _shaped(moe.y, old)
            values |= {} if moe.shared_gate is None else _product_anew(moe.shared_gate)
        return Replace(values, before=op, held=_HELD, details=details, work=moe)


_HELD = ("the weights lie, or can be packed, side by side",)


def _shaped(y: Value, old: Value) -> Value:
    return y if y.shape == old.shape else Reshape(y, shape=old.shape).y


def _between_projections(
    op: Experts, end: End, around: Projections, moe: Moe, details: dict[str, str], func: Func
) -> dict[Value, Value]:
    """The projections and the branch beside them, put in anew, so that the site holds theirs.

    The branch cannot be the op's: it is added behind the second projection, which adds it up.
    """
    into, back = around.into.clone({}), around.back
    values = {around.into.y: into.results[0]}
    branch = _beside(end, around, details, func)
    if branch is None:
        twin = back.clone({back.x: _shaped(moe.y, back.x)})
        return values | {back.y: twin.results[0]}
    rows = (*branch.y.shape[:-1], moe.y.shape[-1])
    inner = moe.y if moe.y.shape == rows else Reshape(moe.y, shape=rows).y
    total = Add(branch.y, back.clone({back.x: inner}).results[0])
    if end.total.owner is not None:
        total.place_like(end.total.owner)
    return values | {end.total: _shaped(total.y, end.total)}


def _beside(end: End, around: Projections, details: dict[str, str], func: Func) -> Beside | None:
    """The branch beside latent experts; what it is, or why it stays, goes to the details."""
    if end.branch is None and not end.apart:
        return None
    try:
        if end.branch is None or end.apart:
            raise Refused("; ".join(end.apart))
        if end.branch.dtype is not around.back.y.dtype:
            raise Refused(f"of {end.branch.dtype}, added to {around.back.y.dtype}")
        branch = beside(end.branch, around.into.x, func)
    except Refused as refused:
        details["shared"] = f"apart: {refused}"
        return None
    place = "on the x before the projection, the result added behind the one back"
    details["shared"] = f"{branch.words} {place}{_factors(end)}"
    return branch


def _factors(end: End) -> str:
    """The factors in words, with those of `End`."""
    given = (("the experts' result", end.routed_factor), ("the sum", end.factor))
    return "".join(f", {what} times {factor:g}" for what, factor in given if factor != 1.0)


def _shared(op: Experts, end: End, details: dict[str, str], func: Func) -> Shared | None:
    """The branch if the op can take it in; what it is, or why it stays, goes to the details."""
    if end.branch is None and not end.apart:
        return None
    try:
        shared = _checked(op, end, func)
    except Refused as refused:
        details["shared"] = f"apart: {'; '.join([*end.apart, *refused.args])}"
        return None
    details["shared"] = shared.words + _factors(end)
    return shared


def _checked(op: Experts, end: End, func: Func) -> Shared:
    branch = end.branch
    if branch is None:
        raise Refused
    if branch.dtype is not op.dtype or op.x.dtype is not op.dtype:
        raise Refused(f"of {branch.dtype}, the experts take {op.x.dtype} and give {op.dtype}")
    shared = shared_branch(branch, op.x, func)
    if end.apart:
        raise Refused
    return shared


def _with_own_route(op: Experts, details: dict[str, str]) -> tuple[dict[Value, Value], Experts]:
    """The experts behind a new router, which takes the place of theirs."""
    route = selection(op.indices)
    if not isinstance(route, Route):
        details["router"] = f"apart: the indices come from {maker(op.indices)}"
        return {}, op
    details["router"] = describe(route)
    if (made := unshaped(op.weights)) is not route.weights:
        details["weights"] = f"apart: {maker(made)} behind the router"
    values = _product_anew(route.logits)
    twin = route.clone({})
    values |= dict(zip(route.results, twin.results, strict=True))
    routed = op.clone(values)
    assert isinstance(routed, Experts), "a clone is of the same class"
    return values, routed


def _product_anew(value: Value) -> dict[Value, Value]:
    """The product that makes a value, put in anew, so that what becomes of it is the site's."""
    while isinstance(value.owner, (Cast, Reshape)):
        value = value.owner.x
    if not isinstance(value.owner, Linear):
        return {}
    return {value: value.owner.clone({}).results[0]}


def _moe(routed: Experts, op: Experts, shared: Shared | None, end: End) -> Moe:
    given = (routed.x, routed.indices, routed.weights, routed.up, routed.down)
    biases = (routed.up_bias, routed.down_bias)
    if shared is None:
        return Moe(*given, *biases, **op.attributes)
    gate = None if shared.gate is None else Reshape(shared.gate, shape=(op.x.shape[0], 1)).y
    return Moe(
        *given,
        *biases,
        shared.up,
        shared.down,
        gate,
        **op.attributes,
        shared_body=shared.body,
        routed_factor=end.routed_factor,
        factor=end.factor,
    )


def _geometry(op: Experts) -> str:
    width = op.body.args[0].shape[0]
    return f"{op.indices.shape[1]} of {op.experts}, {width} wide"


def _words(body: Func) -> str:
    names = [op.name for op in body.ops if op.operands]
    return f"{', '.join(names)} of {'gate and up' if len(body.args) > 1 else 'up'}"
