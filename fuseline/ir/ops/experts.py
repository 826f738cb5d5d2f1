"""Mixture-of-experts ops: the router, the routed experts, and both with a shared branch.

Tokens are the rows of x ``[T, H]``; each goes to the K experts in its row of indices ``[T, K]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.ir.core import (
    Cost,
    Func,
    Op,
    OpError,
    Trait,
    Value,
    attribute,
    operand,
    optional_operand,
    result,
    variadic_operand,
)
from fuseline.ir.types import Dim, DType, TensorType, dim, product

Score: TypeAlias = Literal["none", "softmax", "sigmoid", "sqrt_softplus"]
Normalize: TypeAlias = Literal["none", "sum", "softmax", "sigmoid"]
GroupScore: TypeAlias = Literal["max", "top2"]
Weigh: TypeAlias = Literal["output", "input"]
Combine: TypeAlias = Literal["slots", "experts", "in_turn"]
Body: TypeAlias = Callable[[list[Tensor]], list[Tensor]]


def _scores(logits: Tensor, score: str) -> Tensor:
    match score:
        case "none":
            return logits
        case "softmax":
            return torch.softmax(logits, -1)
        case "sigmoid":
            return torch.sigmoid(logits)
        case "sqrt_softplus":
            return F.softplus(logits).sqrt()
        case _:
            raise ValueError(f"unknown score {score!r}")


def _within_best_groups(
    choice: Tensor, groups: int, top_groups: int, group_score: str, group_fill: float
) -> Tensor:
    """Scores with those outside of the best groups replaced."""
    each = choice.reshape(*choice.shape[:-1], groups, choice.shape[-1] // groups)
    best = each.amax(-1) if group_score == "max" else each.topk(2, -1).values.sum(-1)
    kept = best.topk(top_groups, -1, sorted=False).indices
    mask = torch.zeros_like(best, dtype=torch.bool).scatter(-1, kept, True)
    return choice.masked_fill(~mask.repeat_interleave(each.shape[-1], -1), group_fill)


def route_reference(
    logits: Tensor,
    correction: Tensor | None,
    *,
    k: int,
    score: str,
    dtype: DType,
    groups: int,
    top_groups: int,
    group_score: str,
    group_fill: float,
    ordered: bool,
    selected: bool,
    normalize: str,
    eps: float,
    floor: float | None,
    scale: float,
    weight_dtype: DType,
) -> tuple[Tensor, Tensor]:
    """Score, select, weigh: see `Route`."""
    scores = _scores(logits.to(dtype.torch), score)
    choice = scores if correction is None else scores + correction
    if groups > 1:
        choice = _within_best_groups(choice, groups, top_groups, group_score, group_fill)
    values, indices = choice.topk(k, -1, sorted=ordered)
    weights = values if selected else scores.gather(-1, indices)
    if normalize == "softmax":
        weights = torch.softmax(weights, -1)
    elif normalize == "sigmoid":
        weights = torch.sigmoid(weights)
    elif normalize == "sum":
        total = weights.sum(-1, keepdim=True)
        total = total + eps if eps else total
        weights = weights / (total if floor is None else total.clamp(min=floor))
    weights = weights * scale if scale != 1.0 else weights
    return weights.to(weight_dtype.torch), indices


class Route(Op, name="route", traits={Trait.PURE}):
    """The K experts of each token, and their weights, from the router's logits ``[..., E]``.

    In order: logits are cast to ``dtype``; ``score`` makes scores of them; the correction ``[E]``
    is added for selection only; of ``groups`` equal groups of experts all but the ``top_groups``
    best (by their largest score, or by the sum of their two largest) get ``group_fill`` instead;
    the ``k`` largest are chosen as `torch.topk` does (``ordered``: largest first). The weights are
    the chosen experts' scores without the correction (``selected``: the values that were compared),
    then ``normalize``: divided by their sum plus ``eps``, of at least ``floor``, or their softmax,
    or the sigmoid of each; times ``scale``, rounded to ``weight_dtype`` last. weights and i64
    indices are ``[..., k]``.
    """

    logits: Value = operand()
    correction: Value | None = optional_operand()
    k: int = attribute()
    score: Score = attribute(default="softmax")
    dtype: DType = attribute(default=DType.F32)
    groups: int = attribute(default=1)
    top_groups: int = attribute(default=1)
    group_score: GroupScore = attribute(default="max")
    group_fill: float = attribute(default=float("-inf"))
    ordered: bool = attribute(default=True)
    selected: bool = attribute(default=False)
    normalize: Normalize = attribute(default="none")
    eps: float = attribute(default=0.0)
    floor: float | None = attribute(default=None)
    scale: float = attribute(default=1.0)
    weight_dtype: DType = attribute(default=DType.F32)
    weights: Value = result()
    indices: Value = result()

    def infer(self) -> tuple[TensorType, TensorType]:
        kind = self.logits.tensor
        experts = kind.shape[-1]
        if not isinstance(experts, int) or not 0 < self.k <= experts:
            raise OpError(self, f"the best {self.k} of {kind}")
        if self.correction is not None and self.correction.shape != (experts,):
            raise OpError(self, f"correction {self.correction.type} does not fit {kind}")
        if self.groups < 1 or experts % self.groups or not 0 < self.top_groups <= self.groups:
            raise OpError(self, f"{self.top_groups} of {self.groups} groups of {experts} experts")
        chosen = kind.with_shape((*kind.shape[:-1], self.k))
        return chosen.with_dtype(self.weight_dtype), chosen.with_dtype(DType.I64)

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(8 * self.logits.tensor.numel))

    reference = staticmethod(route_reference)


def _each_weight(weights: tuple[Tensor, ...], experts: int) -> list[list[Tensor]]:
    """The matrices of each expert: slices of one packed tensor, or those given one by one."""
    if weights[0].dim() == 3:
        return [[w[e] for w in weights] for e in range(experts)]
    each = len(weights) // experts
    return [list(weights[e * each : (e + 1) * each]) for e in range(experts)]


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool, round_bias: bool
) -> Tensor:
    matrix = weight.T if transposed else weight
    if bias is None or not round_bias:
        return F.linear(x, matrix, bias)
    return F.linear(x, matrix) + bias


def _sides(hidden: Tensor, *, gated: bool, interleaved: bool) -> list[Tensor]:
    """Gate and up, or the one product."""
    if not gated:
        return [hidden]
    if interleaved:
        return [hidden[..., 0::2], hidden[..., 1::2]]
    return list(hidden.chunk(2, -1))


def experts_reference(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    up: tuple[Tensor, ...],
    down: tuple[Tensor, ...],
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    *,
    experts: int,
    identities: int,
    body: Body,
    gated: bool,
    interleaved: bool,
    transposed: bool,
    down_transposed: bool | None,
    round_bias: bool,
    weigh: str,
    combine: str,
    dtype: DType,
) -> Tensor:
    """Expert by expert: see `Experts`."""
    ups, downs = _each_weight(up, experts), _each_weight(down, experts)
    turned = transposed if down_transposed is None else down_transposed
    width = downs[0][0].shape[1 if turned else 0]
    kind = torch.promote_types(x.dtype, weights.dtype)
    rows = torch.zeros(*indices.shape, width, dtype=kind)
    total = torch.zeros(x.shape[0], width, dtype=dtype.torch)

    def through(e: int, given: Tensor) -> Tensor:
        bias = None if up_bias is None else up_bias[e]
        matrix = torch.cat(ups[e], 1 if transposed else 0)
        hidden = _product(given, matrix, bias, transposed=transposed, round_bias=round_bias)
        (inner,) = body(_sides(hidden, gated=gated, interleaved=interleaved))
        bias = None if down_bias is None else down_bias[e]
        return _product(inner, downs[e][0], bias, transposed=turned, round_bias=round_bias)

    for e in range(experts + identities):
        token, slot = torch.where(indices == e)
        if not token.numel():
            continue
        given, weight = x[token], weights[token, slot, None]
        if weigh == "input":
            given = (given * weight).to(x.dtype)
        out = through(e, given) if e < experts else given
        out = out * weight if weigh == "output" else out
        if combine == "in_turn":
            total.index_add_(0, token, out.to(total.dtype))
        rows[token, slot] = out.to(kind)
    if combine == "in_turn":
        return total
    if combine == "experts":
        order = indices.sort(dim=-1, stable=True).indices
        rows = rows.gather(1, order.unsqueeze(-1).expand_as(rows))
    return rows.to(torch.promote_types(kind, dtype.torch)).sum(1).to(dtype.torch)


def _width(weights: Sequence[Value], transposed: bool) -> tuple[Dim, Dim]:
    """Rows and columns of an expert's matrix (``[N, K]``) as the first weight has them."""
    rows, columns = weights[0].shape[-2:]
    return (columns, rows) if transposed else (rows, columns)


class Experts(Op, name="experts", traits={Trait.PURE}):
    """Each token of x ``[T, H]`` through its experts, weighed and added up: y ``[T, D]``.

    Expert e computes ``body(sides(x @ up[e].T + up_bias[e])) @ down[e].T + down_bias[e]``, rounded
    to x's type after each product, after each bias (with ``round_bias``; else product and bias are
    rounded together), and after each op of ``body``.

    up is one tensor ``[E, N, H]`` (``transposed``: ``[E, H, N]``), or gate and up ``[E, I, H]``
    apart, or the experts' matrices ``[N, H]`` one by one, each gate before its up where these are
    apart; down is ``[E, D, I]`` (``down_transposed``, which is as ``transposed`` where it is
    absent: ``[E, I, D]``) or E matrices ``[D, I]``. Several tensors lie one behind the other in one
    buffer, as in `MergedLinear`. ``body`` takes ``[I]``-wide gate and up
    (N = 2 I: two halves, or every second column if ``interleaved``), or the one product where not
    ``gated``.

    ``weigh``: the weight multiplies the expert's output, or its input; the product has the promoted
    type of both. ``combine``: the K products of a token are added in float32 in the order of its
    ``slots``, or of its ``experts`` (lowest first), and rounded to ``dtype`` once; ``in_turn``:
    added expert by expert to zeros of ``dtype``, rounded each time.

    Indices lie in ``0 .. E + identities``: those behind the E experts pass x on as it is, weighed
    and added as the others are, and cost no product (LongCat-Flash, arXiv:2509.01322).
    """

    x: Value = operand()
    indices: Value = operand()
    weights: Value = operand()
    up: tuple[Value, ...] = variadic_operand()
    down: tuple[Value, ...] = variadic_operand()
    up_bias: Value | None = optional_operand()
    down_bias: Value | None = optional_operand()
    experts: int = attribute()
    identities: int = attribute(default=0)
    body: Func = attribute()
    gated: bool = attribute(default=True)
    interleaved: bool = attribute(default=False)
    transposed: bool = attribute(default=False)
    down_transposed: bool | None = attribute(default=None)
    round_bias: bool = attribute(default=True)
    weigh: Weigh = attribute(default="output")
    combine: Combine = attribute(default="slots")
    dtype: DType = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        x, indices = self.x.tensor, self.indices.tensor
        if x.rank != 2 or indices.rank != 2 or self.weights.shape != indices.shape:
            raise OpError(self, f"x {x}, indices {indices}, weights {self.weights.type}")
        if indices.dtype is not DType.I64:
            raise OpError(self, f"indices are {indices}, expected i64")
        if not self.up or not self.down:
            raise OpError(self, "needs the weights of its experts")
        if _width(self.up, self.transposed)[1] != x.shape[-1]:
            raise OpError(self, f"up {self.up[0].type} does not fit x {x}")
        width = _width(self.down, self.is_down_transposed)[0]
        if self.identities and width != x.shape[-1]:
            raise OpError(self, f"x {x} passed on, beside experts that give {width} columns")
        return TensorType(self.dtype, (x.shape[0], width))

    @property
    def is_down_transposed(self) -> bool:
        """Whether the matrices of down are ``[I, D]``."""
        return self.transposed if self.down_transposed is None else self.down_transposed

    def cost(self) -> Cost:
        matrices: Dim = 0
        for value in (*self.up, *self.down):
            matrices += value.tensor.numel
        chosen = product(self.indices.shape)
        each = dim(matrices // self.experts)
        moved: Dim = 0
        for value in (self.x, self.indices, self.weights, self.y):
            moved += value.tensor.nbytes
        read = dim(cast("Any", sympy.Min)(chosen, self.experts))  # each is read once
        weight = dim(read * each * self.up[0].dtype.itemsize)
        return Cost(dim(moved + weight), dim(2 * chosen * each))

    reference = staticmethod(experts_reference)


class Moe(Experts, name="moe"):
    """`Experts` and the shared branch beside them: ``y = experts(x) + shared(x)``, rounded again.

    The shared branch is ``shared_body(x @ shared_up.T) @ shared_down.T``, rounded like the experts;
    shared_up is gate ``[J, H]`` and up ``[J, H]``, one behind the other in one buffer, or up alone
    where the body takes one product. ``shared_gate`` ``[T, 1]`` multiplies the branch by its
    sigmoid, rounded to x's type. ``routed_factor`` multiplies what the experts give, before it is
    added, and ``factor`` the sum; each result is rounded. Without shared weights this is `Experts`.
    """

    shared_up: tuple[Value, ...] = variadic_operand()
    shared_down: Value | None = optional_operand()
    shared_gate: Value | None = optional_operand()
    shared_body: Func | None = attribute(default=None)
    routed_factor: float = attribute(default=1.0)
    factor: float = attribute(default=1.0)

    def infer(self) -> TensorType:
        y = super().infer()
        if bool(self.shared_up) != (self.shared_down is not None):
            raise OpError(self, "needs both products of the shared branch, or neither")
        if not self.shared_up and (self.routed_factor, self.factor) != (1.0, 1.0):
            raise OpError(self, "has factors of a sum with a shared branch, and no such branch")
        for value in self.shared_up:
            if value.shape[1:] != self.x.shape[-1:]:
                raise OpError(self, f"shared up {value.type} does not fit x {self.x.type}")
        if self.shared_down is not None and self.shared_down.shape[0] != y.shape[1]:
            raise OpError(self, f"shared down {self.shared_down.type} does not fit y {y}")
        return y

    def cost(self) -> Cost:
        total = super().cost()
        for value in (*self.shared_up, self.shared_down):
            if value is not None:
                flops = dim(2 * self.x.shape[0] * value.tensor.numel)
                total += Cost(value.tensor.nbytes, flops)
        return total

    @staticmethod
    def reference(
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        up: tuple[Tensor, ...],
        down: tuple[Tensor, ...],
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        shared_up: tuple[Tensor, ...],
        shared_down: Tensor | None,
        shared_gate: Tensor | None,
        *,
        shared_body: Body | None,
        routed_factor: float,
        factor: float,
        **attributes: Any,
    ) -> Tensor:
        y = experts_reference(x, indices, weights, up, down, up_bias, down_bias, **attributes)
        if shared_down is None or shared_body is None:
            return y
        (hidden,) = shared_body([F.linear(x, w) for w in shared_up])
        shared = F.linear(hidden, shared_down)
        if shared_gate is not None:
            shared = torch.sigmoid(shared_gate).to(shared.dtype) * shared
        y = (y * routed_factor if routed_factor != 1.0 else y) + shared
        return y * factor if factor != 1.0 else y
