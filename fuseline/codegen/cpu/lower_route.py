"""Lowering of the router of a mixture of experts."""

from __future__ import annotations

from fuseline.codegen.cpu.route import RouteKernel
from fuseline.codegen.lower import (
    FLOATS,
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    dtype_name,
    lowers,
    not_dense,
    unsupported,
)
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Route
from fuseline.ir.types import dim, product

MOST_EXPERTS = 8192
"""Of more, the row that a worker keeps on its stack would be too long."""

ELEMENT_WORK = 128
"""Work of one logit: an exponential, and its part in the selection."""


@lowers(Route)
def lower_route(op: Route, layouts: LayoutMap) -> Lowered:
    """The whole router, one token after the other."""
    experts = op.logits.shape[-1]
    assert isinstance(experts, int), "the op's infer checks it"
    if experts > MOST_EXPERTS:
        return Refusal(f"{experts} experts; the kernel takes up to {MOST_EXPERTS}")
    if refusal := unsupported(op.logits, op.correction):
        return refusal
    for dtype in (op.dtype, op.weight_dtype):
        if dtype not in FLOATS:
            return Refusal(f"scores or weights of {dtype}; the kernel takes f32, bf16 and f16")
    if op.groups > 1 and op.group_score == "top2" and experts == op.groups:
        return Refusal("the best two of groups of one expert")
    step = layouts.layout(op.logits).row_stride(op.logits.shape)
    if step is None:
        return NeedDense((op.logits,))
    if need := not_dense([op.correction], layouts):
        return need
    kernel = RouteKernel(
        logits=op.logits.dtype.value,
        experts=experts,
        k=op.k,
        score=op.score,
        dtype=op.dtype.value,
        correction=dtype_name(op.correction),
        groups=op.groups,
        top_groups=op.top_groups,
        group_score=op.group_score,
        group_fill=op.group_fill,
        ordered=op.ordered,
        selected=op.selected,
        normalize=op.normalize,
        eps=op.eps,
        floor=op.floor,
        scale=op.scale,
        weight_dtype=op.weight_dtype.value,
    )
    correction = () if op.correction is None else (op.correction,)
    rows = product(op.logits.shape[:-1])
    work = dim(ELEMENT_WORK * op.logits.tensor.numel)
    return [Launch(kernel, (op.logits, *correction, op.weights, op.indices), (rows, step), work)]
