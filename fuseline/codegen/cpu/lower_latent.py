"""Lowering of latent attention: in the latent space for few queries, expanded for many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fuseline.codegen.attending import (
    known,
    loose_operands,
    mask_strides,
    refused_latent,
    scoring,
)
from fuseline.codegen.cpu.latent import AbsorbedKernel, ExpandedKernel, LatentKernel
from fuseline.codegen.forms import Form, When
from fuseline.codegen.latent_choice import most_absorbed
from fuseline.codegen.lower import WORKERS, Launch, Lowered, Refusal, Scratch, lowers, work
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.types import Dim, bounds, product


@lowers(LatentAttention)
def lower_latent_attention(op: LatentAttention, layouts: LayoutMap) -> Lowered:
    """Attention over what latents expand to; `most_absorbed` says for how many queries which."""
    if found := _refusal(op, layouts) or loose_operands(op, layouts):
        return found
    if layouts.batch_invariant:
        return _launch(op, replace(_absorbed(op), max_splits=1, steady=True), layouts, None)
    queries, keys = op.q.shape[2], op.latent.shape[2]
    width = known(op.latent.shape[3])
    most = most_absorbed(op.key, op.value, width, keys=keys if isinstance(keys, int) else None)
    low, high = bounds(queries, layouts.func.symbols)
    launches: list[Launch] = []
    if most is None or low <= most:
        always = most is None or (high is not None and high <= most)
        when = None if always else (queries, 0, most)
        launches += _launch(op, _absorbed(op), layouts, when)
    if most is not None and (high is None or high > most):
        when = None if low > most else (queries, most + 1, None)
        launches += _launch(op, _expanded(op), layouts, when)
    return launches


MOST_LATENT = 4096
"""Columns of q and of the latent together: a block of latents lies on the stack."""


def _refusal(op: LatentAttention, layouts: LayoutMap) -> Refusal | None:
    if refusal := refused_latent(op, layouts):
        return refusal
    if known(op.q.shape[3]) + known(op.latent.shape[3]) > MOST_LATENT:
        types = f"{op.q.type}, {op.latent.type}"
        return Refusal(f"{types}; the kernel keeps a block of at most {MOST_LATENT} columns")
    return None


def _absorbed(op: LatentAttention) -> AbsorbedKernel:
    fields = _fields(op)
    return AbsorbedKernel(**fields, group=_heads(op), value_width=fields["latent"])


def _expanded(op: LatentAttention) -> ExpandedKernel:
    return ExpandedKernel(**_fields(op), group=1, value_width=op.value, all_heads=_heads(op))


def _fields(op: LatentAttention) -> dict[str, Any]:
    """What the kernels of both forms have in common."""
    latent = known(op.latent.shape[3])
    return {
        **scoring(op),
        "width": op.key + _shared(op),
        "key": op.key,
        "value": op.value,
        "latent": latent,
        "shared": _shared(op),
        "repeat": _heads(op) // op.groups,
        "apart": op.value_weight is not None,
    }


def _heads(op: LatentAttention) -> int:
    return known(op.q.shape[1])


def _shared(op: LatentAttention) -> int:
    return 0 if op.shared is None else known(op.shared.shape[-1])


def _launch(
    op: LatentAttention,
    kernel: LatentKernel,
    layouts: LayoutMap,
    when: When,
) -> list[Launch]:
    batch, heads, queries, _ = op.q.shape
    keys = op.latent.shape[2]
    dims: list[Dim] = [batch, kernel.heads // kernel.group, queries, keys]
    dims += layouts.layout(op.q).strides[:3]
    for cache in (op.latent, op.shared):
        if cache is not None:
            strides = layouts.layout(cache).strides
            dims += [strides[0], strides[2]]
    dims += layouts.layout(op.y).strides[:3]
    dims += mask_strides(op, keys, layouts)
    weights = (op.weight, op.shared, op.value_weight)
    values = (op.q, op.latent, *weights, op.mask, op.positions, op.sinks)
    buffers: list[Value | Scratch] = [v for v in values if v is not None]
    size = kernel.latent_scratch(product((batch, heads, queries)), keys, WORKERS)
    buffers += [op.y, Scratch(size)]
    words = "absorbed" if isinstance(kernel, AbsorbedKernel) else "expanded"
    form = Form("attention", words, "queries")
    return [Launch(k, tuple(buffers), tuple(dims), work(op), when, form) for k in kernel.launches()]
