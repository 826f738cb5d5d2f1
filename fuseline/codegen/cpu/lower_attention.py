"""Lowerings onto the attention kernels."""

from __future__ import annotations

from fuseline.codegen.attending import (
    known,
    loose_operands,
    mask_strides,
    refused_attention,
    scoring,
)
from fuseline.codegen.cpu.attention import (
    SCRATCH_HEADER,
    AttentionKernel,
    BlockedAttentionKernel,
    DecodeAttentionKernel,
)
from fuseline.codegen.forms import Form, When
from fuseline.codegen.lower import Launch, Lowered, Scratch, lowers, work
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.raised import Attention
from fuseline.ir.types import Dim, bounds, dim, product

FEW_ROWS = 8
"""Query rows a key head up to which keys are streamed once for all of them."""

SPLITS = 8
"""Into how many parts the keys of a unit may be cut, where there are few units."""


@lowers(Attention)
def lower_attention(op: Attention, layouts: LayoutMap) -> Lowered:
    """Grouped attention; few query rows and many have kernels of their own."""
    if found := refused_attention(op) or loose_operands(op, layouts):
        return found
    if layouts.batch_invariant:
        return _launch(op, BlockedAttentionKernel, layouts, None)
    rows = dim(known(op.q.shape[1]) // known(op.k.shape[1]) * op.q.shape[2])
    low, high = bounds(rows, layouts.func.symbols)
    launches: list[Launch] = []
    if low <= FEW_ROWS:
        when = None if high is not None and high <= FEW_ROWS else (rows, 0, FEW_ROWS)
        launches += _launch(op, DecodeAttentionKernel, layouts, when)
    if high is None or high > FEW_ROWS:
        when = None if low > FEW_ROWS else (rows, FEW_ROWS + 1, None)
        launches += _launch(op, BlockedAttentionKernel, layouts, when)
    return launches


def _launch(
    op: Attention,
    kind: type[AttentionKernel],
    layouts: LayoutMap,
    when: When,
) -> list[Launch]:
    batch, heads, queries, width = op.q.shape
    groups, value_width = op.k.shape[1], op.v.shape[3]
    kernel = kind(
        **scoring(op),
        group=known(heads) // known(groups),
        width=known(width),
        value_width=known(value_width),
        max_splits=SPLITS if kind is DecodeAttentionKernel else 1,
        steady=layouts.batch_invariant,
    )
    dims: list[Dim] = [batch, groups, queries, op.k.shape[2]]
    for value in (op.q, op.k, op.v, op.y):
        dims += layouts.layout(value).strides[:3]
    dims += mask_strides(op, op.k.shape[2], layouts)
    buffers: list[Value | Scratch] = [op.q, op.k, op.v]
    buffers += [v for v in (op.mask, op.positions, op.sinks) if v is not None]
    buffers.append(op.y)
    if kernel.max_splits > 1:
        rows = product((batch, heads, queries))
        size = SCRATCH_HEADER + kernel.max_splits * rows * kernel.partial_row * 4
        buffers.append(Scratch(dim(size)))
    words = "keys streamed" if kind is DecodeAttentionKernel else "in blocks"
    form = Form("attention", words, "query rows of a key head")
    return [Launch(k, tuple(buffers), tuple(dims), work(op), when, form) for k in kernel.launches()]
