"""What a router of a mixture of experts computes, for every target."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fuseline.codegen.lower import (
    FLOATS,
    NeedDense,
    Refusal,
    dtype_name,
    not_dense,
    unsupported,
)
from fuseline.codegen.norms import promote
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import GroupScore, Normalize, Route, Score
from fuseline.ir.types import Dim, product

MOST_EXPERTS = 8192
"""Of more, the row that one worker or block holds would be too long."""

ELEMENT_WORK = 128
"""Work of one logit: an exponential, and its part in the selection."""


@dataclass(frozen=True)
class Router:
    """The ``k`` experts of each row of logits ``[rows, experts]`` and their weights (see `Route`).

    ``logits``, ``dtype`` (of the scores), ``correction`` (None without one) and ``weight_dtype``
    are f32, bf16 or f16.
    """

    logits: str
    experts: int
    k: int
    score: Score = "softmax"
    dtype: str = "f32"
    correction: str | None = None
    groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    group_fill: float = -math.inf
    ordered: bool = True
    selected: bool = False
    normalize: Normalize = "none"
    eps: float = 0.0
    floor: float | None = None
    scale: float = 1.0
    weight_dtype: str = "f32"

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"The best {self.k} of {self.experts} experts by {self.score} of {self.logits}"

    @property
    def choice(self) -> str:
        """The dtype of what is compared."""
        return promote(self.dtype, self.correction) if self.correction else self.dtype

    @property
    def masked(self) -> bool:
        """Whether some groups are left out."""
        return self.groups > 1 and self.top_groups < self.groups

    @property
    def copies(self) -> bool:
        """Whether what is compared differs from the scores that the weights are made of."""
        return self.correction is not None or (self.masked and not self.selected)


@dataclass(frozen=True)
class RouterOperands:
    """The router of an op, its operands, and where the rows of logits lie."""

    router: Router
    operands: tuple[Value, ...]
    rows: Dim
    step: Dim


def router_operands(op: Route, layouts: LayoutMap) -> RouterOperands | NeedDense | Refusal:
    """What an op routes, or what it lacks for a kernel over rows."""
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
    router = Router(
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
    return RouterOperands(router, (op.logits, *correction, op.weights, op.indices), rows, step)
