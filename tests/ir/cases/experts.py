"""Cases of routers and experts."""

from __future__ import annotations

from typing import Any, cast

import torch

from fuseline.ir import ops
from fuseline.ir.core import Func, Op, Value
from fuseline.ir.types import DType, TensorType
from tests.ir.cases.base import EXTENTS, FLOATS, Case, case


@case("grouped_matmul")
def _(c: Case, op: type[Any]) -> Op:
    dtype, rows, k, n, groups = c.one_of(FLOATS), *(c.one_of(EXTENTS) for _ in range(4))
    ends = torch.tensor(sorted(c.number(0, rows) for _ in range(groups)))
    return op(
        c.arg(dtype, [rows, k], static=1),
        c.arg(dtype, [groups, k, n], static=3),
        c.arg(DType.I32, [groups], static=1, values=ends),
    )


@case("route")
def _(c: Case, op: type[Any]) -> Op:
    groups, each = c.one_of([1, 2, 3]), c.one_of([2, 3])
    kept, experts = c.number(1, groups), groups * each
    logits = c.arg(c.one_of(FLOATS), [*c.shape(), experts], static=1)
    return op(
        logits,
        c.maybe(lambda: c.arg(c.one_of(FLOATS), [experts], static=1)),
        k=c.number(1, kept * each),
        score=c.one_of(["none", "softmax", "sigmoid", "sqrt_softplus"]),
        dtype=c.one_of([DType.F32, logits.dtype]),
        groups=groups,
        top_groups=kept,
        group_score=c.one_of(["max", "top2"]),
        group_fill=c.one_of([0.0, float("-inf")]),
        ordered=c.flag(),
        normalize=c.one_of(["none", "sum", "softmax", "sigmoid"]),
        eps=c.one_of([0.0, 1e-20]),
        floor=c.one_of([None, 1e-6]),
        scale=c.one_of([1.0, 2.5]),
        weight_dtype=c.one_of([DType.F32, logits.dtype]),
    )


def _activation(dtype: DType, width: int, gated: bool) -> Func:
    body = Func("body")
    sides = [body.add_arg(TensorType(dtype, (width,)), f"p{i}") for i in range(1 + gated)]
    y = body.append(ops.pointwise.Silu(sides[0])).y
    body.set_returns([body.append(ops.pointwise.Mul(y, sides[1])).y if gated else y])
    return body


def _experts(c: Case) -> dict[str, Any]:
    """The fields of `experts`."""
    dtype, count = c.one_of(FLOATS), c.number(1, 4)
    tokens, hidden, width, out = (c.one_of(EXTENTS) for _ in range(4))
    gated, transposed, form = c.flag(), c.flag(), c.one_of(["packed", "apart", "one by one"])
    halves, k = 1 + gated, c.number(1, count)
    generator = torch.Generator().manual_seed(c.number(0, 99))
    picks = torch.rand(tokens, count, generator=generator).argsort(-1)[:, :k]

    def matrices(rows: int, columns: int, parts: int) -> list[Value]:
        sizes = [columns, rows] if transposed else [rows, columns]
        lead = [] if form == "one by one" else [count]
        many = parts * count if form == "one by one" else parts
        return [c.arg(dtype, [*lead, *sizes], static=len(lead) + 2) for _ in range(many)]

    whole = form == "packed" or c.flag()
    parts = 1 if whole else halves
    return {
        "x": c.arg(dtype, [tokens, hidden], static=1),
        "indices": c.arg(DType.I64, [tokens, k], static=1, values=picks),
        "weights": c.arg(c.one_of([dtype, DType.F32]), [tokens, k], static=1),
        "up": matrices(width * halves // parts, hidden, parts),
        "down": matrices(out, width, 1),
        "up_bias": c.maybe(lambda: c.arg(dtype, [count, width * halves], static=2)),
        "down_bias": c.maybe(lambda: c.arg(dtype, [count, out], static=2)),
        "experts": count,
        "body": _activation(dtype, width, gated),
        "gated": gated,
        "interleaved": c.flag(),
        "transposed": transposed,
        "round_bias": c.flag(),
        "weigh": c.one_of(["output", "input"]),
        "combine": c.one_of(["slots", "experts", "in_turn"]),
        "dtype": dtype,
    }


@case("experts")
def _(c: Case, op: type[Any]) -> Op:
    return op(**_experts(c))


@case("moe")
def _(c: Case, op: type[Any]) -> Op:
    fields = _experts(c)
    x, width, tokens = fields["x"], c.one_of(EXTENTS), cast("torch.Tensor", c.arguments[0]).shape[0]
    out = fields["down"][0].shape[-1 if fields["transposed"] else -2]
    if c.flag():
        gated = c.flag()
        fields |= {
            "shared_up": [c.arg(x.dtype, [width, x.shape[1]], static=2) for _ in range(1 + gated)],
            "shared_down": c.arg(x.dtype, [out, width], static=2),
            "shared_body": _activation(x.dtype, width, gated),
            "shared_gate": c.maybe(lambda: c.arg(c.one_of(FLOATS), [tokens, 1], static=1)),
            "factor": c.one_of([1.0, 0.5]),
        }
    return op(**fields)
