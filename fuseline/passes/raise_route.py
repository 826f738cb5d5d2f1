"""Recognise the routers of mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Trait, Value
from fuseline.ir.ops.experts import Experts, Route
from fuseline.ir.ops.reduce import TopK
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.router_choice import Choice, Groups, choice_of
from fuseline.passes.router_weights import Weights, weights_of
from fuseline.passes.wording import maker

_NORMALIZED = {
    "sum": "divided by their sum",
    "softmax": "softmax of the chosen",
    "sigmoid": "sigmoid of the chosen",
}


@dataclass(frozen=True)
class RaiseRoute(Rewrite[Experts], root=Experts, pattern="route"):
    """Turn what makes the indices and weights of experts out of the router's logits into ``route``.

    The chain is taken from the scores to the last step that the op has: what makes the logits, and
    what becomes of the weights afterwards, stays as it is.

    Before:
        func @f(%x: f32[T, 8], %l: f32[T, 5], %u: f32[5, 6, 8], %d: f32[5, 8, 6]) {
          %s = softmax %l {axis = 1}
          %v, %i = topk %s {k = 2, axis = 1}
          %t = sum %v {axes = (1,), keepdim = true}
          %w = div %v, %t
          %y = experts %x, %i, %w, [%u], [%d] {experts = 5, gated = false, dtype = f32,
            body = func @body(%h: f32[B, 6]) {
              %a = relu %h
              return %a
            }}
          return %y
        }
    After:
        func @f(%x: f32[T, 8], %l: f32[T, 5], %u: f32[5, 6, 8], %d: f32[5, 8, 6]) {
          %w, %i = route %l {k = 2, normalize = "sum"}
          %y = experts %x, %i, %w, [%u], [%d] {experts = 5, gated = false, dtype = f32,
            body = func @body(%h: f32[B, 6]) {
              %a = relu %h
              return %a
            }}
          return %y
        }

    Before:
        func @f(%x: bf16[T, 8], %l: f32[T, 6], %c: f32[6] = param "c", %u: bf16[6, 6, 8],
                %d: bf16[6, 8, 6]) {
          %s = sigmoid %l
          %b = add %s, %c
          %v, %i = topk %b {k = 2, axis = 1, ordered = false}
          %w = gather %s, %i {axis = 1}
          %f = full {value = 2.5, dtype = f32}
          %p = mul %w, %f
          %y = experts %x, %i, %p, [%u], [%d] {experts = 6, gated = false, dtype = bf16,
            body = func @body(%h: bf16[B, 6]) {
              %a = relu %h
              return %a
            }}
          return %y
        }
    After:
        func @f(%x: bf16[T, 8], %l: f32[T, 6], %c: f32[6] = param "c", %u: bf16[6, 6, 8],
                %d: bf16[6, 8, 6]) {
          %p, %i = route %l, %c {k = 2, score = "sigmoid", ordered = false, scale = 2.5}
          %y = experts %x, %i, %p, [%u], [%d] {experts = 6, gated = false, dtype = bf16,
            body = func @body(%h: bf16[B, 6]) {
              %a = relu %h
              return %a
            }}
          return %y
        }
    """

    def rewrite(self, op: Experts, func: Func) -> Replace | NoMatch | None:
        source = selection(op.indices)
        if isinstance(source, Route):
            return None
        if not isinstance(source, TopK):
            return NoMatch(f"the indices come from {maker(op.indices)}, not from one top-k")
        if reason := _refusal(source):
            return NoMatch(reason)
        choice = choice_of(source, func)
        weights = weights_of(source, choice, func)
        route = _route(source, choice, weights)
        values = {source.indices: route.indices}
        if weights.value is not None:
            values[weights.value] = route.weights
        return Replace(
            values,
            before=source,
            held=("the indices are those of one top-k over the logits",),
            details={"router": describe(route), **_apart(op, weights)},
        )


def selection(indices: Value) -> TopK | Route | None:
    """The one selection that indices come from, through views and element-wise ops."""
    found: dict[TopK | Route, None] = {}
    stack, seen = [indices], set[Value]()
    while stack:
        value = stack.pop()
        owner = value.owner
        if value in seen or owner is None or value.dtype.is_float:
            continue
        seen.add(value)
        if isinstance(owner, (TopK, Route)):
            found[owner] = None
        elif owner.has(Trait.VIEW) or owner.has(Trait.POINTWISE):
            stack += owner.operands
    return next(iter(found)) if len(found) == 1 else None


def _refusal(topk: TopK) -> str:
    """Why a top-k is not the selection of a router; empty where it is."""
    if topk.axis != topk.x.tensor.rank - 1:
        return f"top-k runs over axis {topk.axis} of {topk.x.type}, not over the experts"
    if not topk.largest:
        return "top-k takes the smallest"
    if not isinstance(topk.k, int) or not isinstance(topk.x.shape[-1], int):
        return f"top-k takes {topk.k} of {topk.x.type}, not known numbers"
    if not topk.x.dtype.is_float:
        return f"top-k compares {topk.x.dtype}"
    return ""


def _route(topk: TopK, choice: Choice, weights: Weights) -> Route:
    groups = choice.groups or Groups(1, 1, "max", float("-inf"))
    assert isinstance(topk.k, int), "a number of experts that is not known was refused"
    value = weights.value
    return Route(
        choice.logits,
        choice.correction,
        k=topk.k,
        score=choice.score,
        dtype=weights.dtype if choice.score == "none" and not weights.selected else choice.dtype,
        groups=groups.count,
        top_groups=groups.top,
        group_score=groups.score,
        group_fill=groups.fill,
        ordered=topk.ordered,
        selected=weights.selected,
        normalize=weights.normalize,
        eps=weights.eps,
        floor=weights.floor,
        scale=weights.scale,
        weight_dtype=choice.dtype if value is None else value.dtype,
    )


def _apart(op: Experts, weights: Weights) -> dict[str, str]:
    """What of the weights the op does not compute, for the site."""
    if weights.value is None:
        return {"weights": "apart: the chosen scores are not those that were compared"}
    value = op.weights
    while value is not weights.value and value.owner is not None and value.owner.has(Trait.VIEW):
        value = value.owner.operands[0]
    if value is weights.value:
        return {}
    return {"weights": f"apart: {maker(value)} behind the router"}


def describe(route: Route) -> str:
    """A router in a few words."""
    parts = [f"top {route.k} of {route.logits.shape[-1]}"]
    if route.groups > 1:
        parts.append(f"in {route.top_groups} of {route.groups} groups")
    if route.score != "none":
        parts.append(route.score)
    if route.correction is not None:
        parts.append("corrected")
    if route.normalize != "none":
        parts.append(_NORMALIZED[route.normalize])
    if route.scale != 1.0:
        parts.append(f"times {route.scale:g}")
    return f"{', '.join(parts)}, in {route.dtype}"
