"""Routers for the tests of every target, and what they should give."""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.codegen.routers import Router
from fuseline.ir.ops.experts import route_reference
from fuseline.ir.types import DType
from tests.codegen.oracle import DTYPES, seeded

SIGMOID = Router(
    logits="f32",
    experts=64,
    k=6,
    score="sigmoid",
    correction="f32",
    groups=8,
    top_groups=3,
    group_score="top2",
    group_fill=0.0,
    normalize="sum",
    eps=1e-20,
    scale=2.5,
)
ROUTERS = [
    SIGMOID,
    dataclasses.replace(SIGMOID, ordered=False, group_fill=-math.inf),
    dataclasses.replace(SIGMOID, experts=130, groups=13, top_groups=6, k=11, group_score="max"),
    dataclasses.replace(SIGMOID, groups=1, top_groups=1, selected=True, floor=0.5, eps=0.0),
    dataclasses.replace(SIGMOID, score="sqrt_softplus", correction="bf16", groups=1, top_groups=1),
    dataclasses.replace(SIGMOID, logits="bf16", dtype="bf16", correction="f32", weight_dtype="f16"),
    dataclasses.replace(SIGMOID, logits="f16", dtype="f16", correction=None, k=24),
    dataclasses.replace(SIGMOID, correction=None, selected=True, top_groups=8, groups=8),
    Router("f32", 1, 1),
    Router("f32", 5, 5, normalize="softmax", score="none"),
    Router("f32", 64, 1, score="sigmoid", ordered=False),
    Router("bf16", 67, 1, score="sigmoid", dtype="bf16"),
    Router("bf16", 61, 8, weight_dtype="bf16", normalize="sum"),
    Router("bf16", 32, 4, score="none", dtype="bf16", normalize="softmax", weight_dtype="bf16"),
    Router("bf16", 16, 1, score="none", normalize="sigmoid", weight_dtype="bf16"),
    Router("f32", 40, 3, score="none", dtype="bf16", normalize="sigmoid", scale=1.5),
    Router("f16", 31, 31, dtype="f16", ordered=False, normalize="sum", floor=1e-4),
    Router("f32", 128, 2, dtype="bf16", scale=0.3),
    Router("f32", 512, 22, score="sigmoid", correction="f16", normalize="sum"),
    Router("f32", 520, 8, score="sqrt_softplus", dtype="f16", ordered=False),
]


def routers() -> list[Router]:
    """Every score, normalization and dtype, few and many experts, in groups and not."""
    return list(ROUTERS)


def title(router: Router) -> str:
    """For the names of tests."""
    return f"{router.score}-{router.experts}-{router.k}-{router.groups}-{router.dtype}"


class _Best(NamedTuple):
    values: Tensor
    indices: Tensor


def _stable_topk(x: Tensor, k: int, dim: int = -1, **_: object) -> _Best:
    """The k largest, of equal ones the first; a NaN is the largest."""
    found = torch.sort(x, dim=dim, descending=True, stable=True)
    return _Best(found.values[..., :k], found.indices[..., :k])


def stable_topk() -> AbstractContextManager[object]:
    """Within it `torch.topk` chooses the first of equal numbers, as the GPU kernels do."""
    return mock.patch.object(Tensor, "topk", _stable_topk)


def reference(
    router: Router, logits: Tensor, correction: Tensor | None, *, stable: bool = False
) -> list[Tensor]:
    """Weights and indices; ``stable``: of equal scores the first experts are chosen, first."""
    fields: dict[str, Any] = {
        field.name: getattr(router, field.name)
        for field in dataclasses.fields(Router)
        if field.name not in ("logits", "experts", "correction")
    }
    fields["dtype"], fields["weight_dtype"] = DType(router.dtype), DType(router.weight_dtype)
    if not stable:
        return list(route_reference(logits, correction, **fields))
    with stable_topk():
        return list(route_reference(logits, correction, **fields))


def correction_of(router: Router, *, whole: bool = False) -> Tensor | None:
    """A correction, of whole numbers so that scores are equal; None where there is none."""
    if router.correction is None:
        return None
    given = seeded(router.experts, dtype=torch.float32, seed=5, scale=0.2)
    return (
        (given * 4).round().to(DTYPES[router.correction])
        if whole
        else given.to(DTYPES[router.correction])
    )


def _scores(logits: Tensor, score: str) -> Tensor:
    match score:
        case "softmax":
            return torch.softmax(logits, -1)
        case "sigmoid":
            return torch.sigmoid(logits)
        case "sqrt_softplus":
            return F.softplus(logits).sqrt()
        case _:
            return logits


def exact_weights(
    router: Router, logits: Tensor, correction: Tensor | None, indices: Tensor
) -> Tensor:
    """The weights of given experts in float64."""
    scores = _scores(logits, router.score)
    if router.selected and correction is not None:
        scores = scores + correction.double()
    weights = scores.gather(-1, indices)
    if router.normalize == "softmax":
        weights = torch.softmax(weights, -1)
    if router.normalize == "sigmoid":
        weights = torch.sigmoid(weights)
    if router.normalize == "sum":
        total = weights.sum(-1, keepdim=True) + router.eps
        weights = weights / (total if router.floor is None else total.clamp(min=router.floor))
    return weights * router.scale


REFUSED = [
    ("f64[4, 8]", "", "f64 operands; the kernel takes f32, bf16 and f16"),
    ("f32[4, 9000]", "", "9000 experts; the kernel takes up to 8192"),
    (
        "f32[4, 8]",
        ", weight_dtype = f64",
        "scores or weights of f64; the kernel takes f32, bf16 and f16",
    ),
    (
        "f32[4, 8]",
        ', groups = 8, group_score = "top2"',
        "the best two of groups of one expert",
    ),
]
"""Logits, more attributes, and why there is no kernel."""
