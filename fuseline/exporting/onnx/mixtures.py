"""Gated MLPs, routers, and low-rank adapters, as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fuseline.exporting.onnx.registry import expands
from fuseline.frontend.builder import Builder
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops import reduce as r
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.ops.experts import Route
from fuseline.ir.ops.index import Gather, IndexSelect, Scatter
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.ops.raised import GatedMlp
from fuseline.ir.types import Dim, DType, product, promote


def _relu2(b: Builder, x: Value) -> Value:
    positive = b.add(p.Relu(x)).y
    return b.add(p.Mul(positive, positive)).y


_ACTIVATIONS: dict[str, Callable[[Builder, Value], Value]] = {
    "silu": lambda b, x: b.add(p.Silu(x)).y,
    "gelu": lambda b, x: b.add(p.Gelu(x)).y,
    "gelu_tanh": lambda b, x: b.add(p.Gelu(x, approximate="tanh")).y,
    "relu": lambda b, x: b.add(p.Relu(x)).y,
    "relu2": _relu2,
}


@expands(GatedMlp)
def _gated_mlp(b: Builder, op: GatedMlp) -> Value:
    gate = b.add(Linear(op.x, op.gate, op.gate_bias)).y
    up = b.add(Linear(op.x, op.up, op.up_bias)).y
    hidden = b.add(p.Mul(_ACTIVATIONS[op.activation](b, gate), up)).y
    return b.add(Linear(hidden, op.down, op.down_bias)).y


def _scores(b: Builder, logits: Value, score: str) -> Value:
    last = logits.tensor.rank - 1
    match score:
        case "softmax":
            return b.add(r.Softmax(logits, axis=last)).y
        case "sigmoid":
            return b.add(p.Sigmoid(logits)).y
        case "sqrt_softplus":
            return b.add(p.Sqrt(b.add(p.Softplus(logits)).y)).y
        case _:
            return logits


def _within_best_groups(b: Builder, op: Route, choice: Value) -> Value:
    """Scores with those outside of the best groups replaced."""
    lead, experts = choice.shape[:-1], choice.shape[-1]
    last = choice.tensor.rank - 1
    size: Any = experts // op.groups
    each = b.reshape(choice, (*lead, op.groups, size))
    if op.group_score == "max":
        best = b.add(r.Amax(each, axes=(last + 1,))).y
    else:
        two = b.add(r.TopK(each, k=2, axis=last + 1)).values
        best = b.add(r.Sum(two, axes=(last + 1,))).y
    kept = b.add(r.TopK(best, k=op.top_groups, axis=last, ordered=False)).indices
    none = b.full(False, DType.BOOL, best.shape)
    mask = b.add(Scatter(none, kept, b.full(True, DType.BOOL), axis=last)).y
    spread = b.expand(b.reshape(mask, (*lead, op.groups, 1)), (*lead, op.groups, size))
    fill = b.full(op.group_fill, choice.dtype)
    return b.add(p.Where(b.reshape(spread, choice.shape), choice, fill)).y


@expands(Route)
def _route(b: Builder, op: Route) -> tuple[Value, Value]:
    """As `fuseline.ir.ops.experts.route_reference`."""
    last = op.logits.tensor.rank - 1
    scores = _scores(b, b.cast(op.logits, op.dtype), op.score)
    choice = scores if op.correction is None else b.add(p.Add(scores, op.correction)).y
    if op.groups > 1:
        choice = _within_best_groups(b, op, choice)
    best = b.add(r.TopK(choice, k=op.k, axis=last, ordered=op.ordered))
    indices = best.indices
    weights = best.values if op.selected else b.add(Gather(scores, indices, axis=last)).y
    if op.normalize == "softmax":
        weights = b.add(r.Softmax(weights, axis=last)).y
    elif op.normalize == "sigmoid":
        weights = b.add(p.Sigmoid(weights)).y
    elif op.normalize == "sum":
        total = b.add(r.Sum(weights, axes=(last,), keepdim=True)).y
        if op.eps:
            total = b.add(p.Add(total, b.scalar(op.eps, total))).y
        if op.floor is not None:
            total = b.add(p.Maximum(total, b.scalar(op.floor, total))).y
        weights = b.add(p.Div(weights, total)).y
    if op.scale != 1.0:
        weights = b.add(p.Mul(weights, b.scalar(op.scale, weights))).y
    return b.cast(weights, op.weight_dtype), indices


@expands(MultiLora)
def _multi_lora(b: Builder, op: MultiLora) -> Value:
    """Each row with the matrices of its adapter, gathered; as the op's reference otherwise."""
    rows, width = product(op.x.shape[:-1]), op.x.shape[-1]
    x = b.reshape(op.x, (rows, 1, width))
    ids = b.reshape(op.ids, (rows,))
    last: Dim = op.a.shape[0]
    assert isinstance(last, int), "the number of adapters is known"
    near = b.add(p.Minimum(ids, b.full(last - 1, DType.I64))).y
    down = _matrices(b, op.a, near, turned=not op.a_transposed)
    up = _matrices(b, op.b, near, turned=not op.b_transposed)
    factor = None if op.factor is None else b.reshape(op.factor, (rows, 1, 1))
    low = b.add(Matmul(x, down)).y
    if op.inner:
        low = b.cast(_scaled(b, low, op.scale, factor), op.x.dtype)
    kind = low.dtype if op.rounds else promote([low.tensor, low.tensor.with_dtype(DType.F32)])
    found = b.add(Matmul(b.cast(low, kind), b.cast(up, kind))).y
    if not op.inner:
        found = _scaled(b, found, op.scale, factor)
    found = b.cast(found, op.delta_dtype)
    if op.skips:
        own = b.reshape(b.add(p.Lt(ids, b.full(last, DType.I64))).y, (rows, 1, 1))
        found = b.add(p.Where(own, found, b.full(0.0, op.delta_dtype))).y
    found = b.reshape(found, op.y.shape)
    if op.base is not None:
        found = b.add(p.Add(op.base, found)).y
    return b.cast(found, op.dtype)


def _matrices(b: Builder, packed: Value, ids: Value, *, turned: bool) -> Value:
    own = b.add(IndexSelect(packed, ids, axis=0)).y
    return b.permute(own, (0, 2, 1)) if turned else own


def _scaled(b: Builder, value: Value, scale: float, factor: Value | None) -> Value:
    if scale != 1.0:
        value = b.add(p.Mul(value, b.scalar(scale, value))).y
    return value if factor is None else b.add(p.Mul(value, factor)).y
