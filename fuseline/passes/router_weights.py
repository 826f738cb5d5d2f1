"""What a router makes of the chosen scores: softmax, sigmoid or shares, a factor, a rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.experts import Normalize
from fuseline.ir.ops.index import Gather
from fuseline.ir.ops.pointwise import Add, Cast, Div, Maximum, Mul, Sigmoid
from fuseline.ir.ops.reduce import Softmax, Sum, TopK
from fuseline.ir.types import DType
from fuseline.passes.constants import number
from fuseline.passes.match import only_user, other_operand
from fuseline.passes.router_choice import Choice


@dataclass(frozen=True)
class Weights:
    """How far `Route` can compute the weights: ``value`` is what its result replaces.

    Attributes:
        value: absent where no chosen score is read at all.
        selected: whether they are the values that top-k compared.
        dtype: the element type of the scores; wider than the router's where these are widened.
        normalize, eps, floor, scale: as in `Route`.
    """

    value: Value | None
    dtype: DType
    selected: bool = False
    normalize: Normalize = "none"
    eps: float = 0.0
    floor: float | None = None
    scale: float = 1.0


def weights_of(topk: TopK, choice: Choice, func: Func) -> Weights:
    """The longest chain from the chosen scores on that `Route` computes; what follows stays."""
    weights = _chosen(topk, choice, func)
    if weights.value is None:
        return weights
    weights = _normalized(weights, choice, func)
    weights = _scaled(weights, func)
    return _rounded(weights, func)


def _chosen(topk: TopK, choice: Choice, func: Func) -> Weights:
    """The values that were compared where they are read, else what is gathered by the indices."""
    plain = choice.correction is None and choice.groups is None
    if func.users(topk.values) or func.is_returned(topk.values):
        return Weights(topk.values, topk.values.dtype, selected=not plain)
    last = topk.x.tensor.rank - 1
    for op in func.users(topk.indices):
        if isinstance(op, Gather) and op.index is topk.indices and op.axis == last:
            if op.x is choice.scores:
                return Weights(op.y, choice.dtype)
            if op.x is topk.x:
                return Weights(op.y, op.y.dtype, selected=not plain)
    return Weights(None, choice.dtype)


def _normalized(weights: Weights, choice: Choice, func: Func) -> Weights:
    assert weights.value is not None, "there are weights"
    scored = _scored(weights, choice, func)
    if scored is not None:
        return scored
    value, last = weights.value, weights.value.tensor.rank - 1
    readers = func.users(value)
    totals = [r for r in readers if isinstance(r, Sum)]
    quotients = [r for r in readers if isinstance(r, Div) and r.lhs is value]
    if func.is_returned(value) or len(readers) != 2 or not totals or not quotients:
        return weights
    if totals[0].axes != (last,) or not totals[0].keepdim:
        return weights
    divisor, found = totals[0].y, weights
    while only_user(func, divisor) is not quotients[0]:
        step = _guarded(only_user(func, divisor), divisor, found)
        if step is None:
            return weights
        divisor, found = step
    if quotients[0].rhs is not divisor:
        return weights
    return replace(found, value=quotients[0].y, normalize="sum")


def _guarded(op: Op | None, total: Value, found: Weights) -> tuple[Value, Weights] | None:
    """A sum that is kept from 0: by an epsilon, then by a lower bound."""
    if not isinstance(op, (Add, Maximum)) or found.floor is not None:
        return None
    other = other_operand(op, total)
    bound = None if other is None else number(other)
    if other is None or other.shape or bound is None or op.y.dtype is not total.dtype:
        return None
    if isinstance(op, Maximum):
        return op.y, replace(found, floor=float(bound))
    return (op.y, replace(found, eps=float(bound))) if not found.eps else None


def _scored(weights: Weights, choice: Choice, func: Func) -> Weights | None:
    """The softmax or sigmoid of the chosen; logits are widened first where all can be, exactly."""
    value = weights.value
    assert value is not None, "there are weights"
    reader = only_user(func, value)
    if isinstance(reader, Cast) and _widens(reader, weights, choice):
        value, reader = reader.y, only_user(func, reader.y)
    if isinstance(reader, Softmax) and reader.axis == value.tensor.rank - 1:
        return replace(weights, value=reader.y, dtype=value.dtype, normalize="softmax")
    if isinstance(reader, Sigmoid):
        return replace(weights, value=reader.y, dtype=value.dtype, normalize="sigmoid")
    return None


def _widens(op: Cast, weights: Weights, choice: Choice) -> bool:
    """Whether bare logits are widened after their selection: before it makes no difference."""
    bare = choice.score == "none" and choice.correction is None and choice.groups is None
    wider = op.dtype.is_float and op.dtype.itemsize > weights.dtype.itemsize
    return bare and wider and op.dtype is not DType.F64


def _scaled(weights: Weights, func: Func) -> Weights:
    assert weights.value is not None, "there are weights"
    op = only_user(func, weights.value)
    if not isinstance(op, Mul):
        return weights
    other = other_operand(op, weights.value)
    factor = None if other is None else number(other)
    if other is None or other.shape or factor is None or op.y.dtype is not weights.value.dtype:
        return weights
    return replace(weights, value=op.y, scale=float(factor))


def _rounded(weights: Weights, func: Func) -> Weights:
    assert weights.value is not None, "there are weights"
    op = only_user(func, weights.value)
    if isinstance(op, Cast) and op.dtype.is_float:
        return replace(weights, value=op.y)
    return weights
