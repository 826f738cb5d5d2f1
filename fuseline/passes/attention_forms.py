"""What the spellings of attention have in common, and the reading of torch's own op."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fuseline.ir.core import Value
from fuseline.ir.ops import matmul, view
from fuseline.ir.types import DType
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.terms import Applied
from fuseline.passes.repeated_heads import grouped_heads
from fuseline.passes.rewrite import NoMatch


@dataclass(frozen=True)
class Form:
    """One attention: operands of four dims, and what is done to the scores between the products.

    Attributes:
        q: ``[B, H, Sq, D]``.
        k: ``[B, Hk, Sk, D]``.
        v: ``[B, Hk, Sk, Dv]``.
        scale: what the scores are multiplied by.
        masks: in any order; they line up with the scores at the last dim.
        causal: query i sees the keys up to i.
        softcap: the scores (scaled) go through ``cap * tanh(x / cap)``.
        sinks: one more logit a head, ``[H]``.
    """

    q: Value
    k: Value
    v: Value
    scale: float
    masks: tuple[Applied, ...] = ()
    causal: bool = False
    softcap: float | None = None
    sinks: Value | None = None


def match_sdpa(op: matmul.Sdpa, elements: Elements) -> Form | NoMatch:
    """The form of torch's ``scaled_dot_product_attention``."""
    if any(len(x.shape) not in (3, 4) for x in (op.q, op.k, op.v)):
        return NoMatch(f"q is {op.q.type} and k {op.k.type}: expected three or four dims")
    scale, width = op.scale, op.q.shape[-1]
    if scale is None and not isinstance(width, int):
        return NoMatch(f"the scale depends on the head width {width}, which is not known")
    if scale is None:
        scale = 1 / math.sqrt(float(width))
    masks: tuple[Applied, ...] = ()
    if op.mask is not None:
        masks = (Applied(op.mask, "keep" if op.mask.dtype is DType.BOOL else "add"),)
    q, k, v = (_four(x) for x in (op.q, op.k, op.v))
    k, v = once_each(k, v, elements)
    return _unpacked(Form(q, k, v, scale, masks, op.is_causal))


def _four(x: Value) -> Value:
    return x if len(x.shape) == 4 else view.Reshape(x, shape=(1, *x.shape)).y


def once_each(
    k: Value, v: Value, elements: Elements, *, transposed: bool = False
) -> tuple[Value, Value]:
    """Keys and values with their heads once each, where both were repeated alike."""
    keys = grouped_heads(k, elements, transposed=transposed)
    values = grouped_heads(v, elements)
    if keys.shape[1] == values.shape[1]:
        return keys, values
    return (view.Permute(k, dims=(0, 1, 3, 2)).y if transposed else k), v


def _unpacked(form: Form) -> Form:
    """Query heads that stand where the queries do, ``[B, Hk, G, D]``, back as heads of one query.

    Some decode steps pack them so, to save repeating the keys; masks must not tell them apart.
    """
    owner = form.q.owner
    if not isinstance(owner, view.Reshape) or form.causal or len(owner.x.shape) != 4:
        return form
    batch, groups, packed, width = form.q.shape
    if not isinstance(groups, int) or not isinstance(packed, int) or packed == 1:
        return form
    alike = all(m.value.shape[-3:-1] in ((1, 1), (1,), ()) for m in form.masks)
    if owner.x.shape == (batch, groups * packed, 1, width) and form.k.shape[1] == groups and alike:
        return replace(form, q=owner.x)
    return form
