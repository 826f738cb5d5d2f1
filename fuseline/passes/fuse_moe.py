"""Fuse a mixture of experts: router, routed experts, and the branch that all tokens share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.experts import Experts, Moe, Route
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Add, Cast, Div, Mul
from fuseline.ir.ops.raised import LayerNorm, RmsNorm
from fuseline.ir.ops.view import Reshape
from fuseline.passes.canonical_casts import is_exact
from fuseline.passes.constants import number
from fuseline.passes.expert_body import Refused
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.match import narrow, only_user, other_operand
from fuseline.passes.merge_linears import unpackable
from fuseline.passes.raise_route import describe, selection
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.shared_branch import Shared, is_branch, shared_branch
from fuseline.passes.wording import maker


@dataclass(frozen=True)
class FuseMoe(Rewrite[Experts], root=Experts, pattern="moe"):
    """Make one op of routed experts and of the shared branch, an MLP of the same x, beside them.

    The branch may be weighed by the sigmoid of a product, and the sum by a factor. Where the branch
    reads something else, or has a form that the op does not, it stays, and the site says why.
    Whether the branch runs as one more expert or beside the others is for the kernel to decide.

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
        end = _end(op, func)
        shared = None if end.branch is None else _shared(op, end, details, func)
        if end.latent:
            details["latent"] = end.latent
        moe = _moe(routed, op, shared, end)
        old = op.y if shared is None else end.y
        values[old] = moe.y if old.shape == moe.y.shape else Reshape(moe.y, shape=old.shape).y
        return Replace(values, before=op, held=_HELD, details=details)


_HELD = ("the weights lie, or can be packed, side by side",)


@dataclass(frozen=True)
class _End:
    """What becomes of the experts' result.

    Attributes:
        y: the sum with the branch, with a factor.
        branch: what is added to the experts' result; absent where that is no MLP's.
        factor: of the sum.
        apart: why the op cannot add it.
        latent: the projections around the experts, where there are any.
    """

    y: Value
    branch: Value | None = None
    factor: float = 1.0
    apart: str = ""
    latent: str = ""


def _end(op: Experts, func: Func) -> _End:
    latent, value, apart = _latent(op, func), op.y, ""
    while (reader := only_user(func, value)) is not None:
        match reader:
            case Add(lhs, rhs, y=y) if lhs is not rhs:
                other = rhs if lhs is value else lhs
                return _sum(func, op, value, other, y, apart, latent)
            case Reshape():
                pass
            case Cast() if is_exact(op.dtype, reader.dtype):
                pass
            case Linear(x) if x is value and latent and "projection" not in apart:
                apart = "added behind the projection of the latent experts"
            case RmsNorm(x) | LayerNorm(x) if x is value:
                apart = "added to the norm of the experts' result"
            case Mul() if _factor(reader, value) is not None:
                apart = f"added to the experts' result times {_factor(reader, value):g}"
            case _:
                break
        value = reader.results[0]
    return _End(op.y, latent=latent)


def _sum(
    func: Func, op: Experts, value: Value, other: Value, y: Value, apart: str, latent: str
) -> _End:
    """The sum, its rounding and its factor."""
    branch = _unwidened(other)
    inner = _unnormed(branch)
    if not is_branch(inner):
        return _End(op.y, latent=latent)
    if value.dtype is not op.dtype:  # added in a wider type, and rounded: as torch adds, anyway
        reader = only_user(func, y)
        if branch is other or not isinstance(reader, Cast) or reader.dtype is not op.dtype:
            return _End(op.y, inner, apart=f"added in {value.dtype}", latent=latent)
        y = reader.y
    factor, scaled = 1.0, y
    while isinstance(reader := only_user(func, scaled), Reshape):
        scaled = reader.y
    if reader is not None and (found := _factor(reader, scaled)) is not None:
        factor, y = found, reader.results[0]
    if inner is not branch:
        apart = apart or "added as the norm of its result"
    return _End(y, inner, factor, apart, latent)


def _unwidened(value: Value) -> Value:
    value = unshaped(value) if isinstance(unshaped(value).owner, Cast) else value
    return narrow(value)


def _unnormed(value: Value) -> Value:
    owner = unshaped(value).owner
    return owner.x if isinstance(owner, (RmsNorm, LayerNorm)) else value


def _factor(op: Op, value: Value) -> float | None:
    """The number by which an op multiplies a value; a division only by a power of two is one."""
    if not isinstance(op, (Mul, Div)) or op.y.dtype is not value.dtype:
        return None
    other = other_operand(op, value)
    found = None if other is None or other.shape else number(other)
    if found is None:
        return None
    if isinstance(op, Mul):
        return float(found)
    exact = op.lhs is value and found and abs(math.frexp(found)[0]) == 0.5
    return 1.0 / found if exact else None


def _latent(op: Experts, func: Func) -> str:
    """The widths around experts that work in a space of their own; empty where they do not."""
    inner, value = unshaped(op.x).owner, op.y
    while isinstance(reader := only_user(func, value), Reshape):
        value = reader.y
    if not isinstance(inner, Linear) or not isinstance(reader, Linear) or reader.x is not value:
        return ""
    return f"{inner.x.shape[-1]} to {op.x.shape[-1]} and back to {reader.weight.shape[0]}"


def _shared(op: Experts, end: _End, details: dict[str, str], func: Func) -> Shared | None:
    """The branch if the op can take it in; what it is, or why it stays, goes to the details."""
    assert end.branch is not None, "asked of sums only"
    try:
        shared = _checked(op, end, end.branch, func)
    except Refused as refused:
        details["shared"] = f"apart: {refused}"
        return None
    averaged = "" if end.factor == 1.0 else f", the sum times {end.factor:g}"
    details["shared"] = shared.words + averaged
    return shared


def _checked(op: Experts, end: _End, branch: Value, func: Func) -> Shared:
    if end.apart:
        raise Refused(end.apart)
    if branch.dtype is not op.dtype or op.x.dtype is not op.dtype:
        raise Refused(f"of {branch.dtype}, the experts take {op.x.dtype} and give {op.dtype}")
    return shared_branch(branch, op.x, func)


def _with_own_route(op: Experts, details: dict[str, str]) -> tuple[dict[Value, Value], Experts]:
    """The experts behind a new router, which takes the place of theirs."""
    route = selection(op.indices)
    if not isinstance(route, Route):
        details["router"] = f"apart: the indices come from {maker(op.indices)}"
        return {}, op
    details["router"] = describe(route)
    if (made := unshaped(op.weights)) is not route.weights:
        details["weights"] = f"apart: {maker(made)} behind the router"
    twin = route.clone({})
    values = dict(zip(route.results, twin.results, strict=True))
    routed = op.clone(values)
    assert isinstance(routed, Experts), "a clone is of the same class"
    return values, routed


def _moe(routed: Experts, op: Experts, shared: Shared | None, end: _End) -> Moe:
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
        factor=end.factor,
    )


def _geometry(op: Experts) -> str:
    width = op.body.args[0].shape[0]
    return f"{op.indices.shape[1]} of {op.experts}, {width} wide"


def _words(body: Func) -> str:
    names = [op.name for op in body.ops if op.operands]
    return f"{', '.join(names)} of {'gate and up' if len(body.args) > 1 else 'up'}"
