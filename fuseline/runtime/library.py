"""Steps that torch's own libraries do best (cuBLAS, cuDNN, flash attention), into planned memory.

A plan names them, so that it can be written to a file. Each takes its operands, the tensors to
write, and attributes; it neither waits for the device nor keeps anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

LibraryCall: TypeAlias = Callable[..., None]

LIBRARY: dict[str, LibraryCall] = {}
"""What a plan may name."""


def library(function: LibraryCall) -> LibraryCall:
    """Make a function known by its name."""
    LIBRARY[function.__name__] = function
    return function


@library
def linear(operands: Sequence[Tensor | None], results: Sequence[Tensor], *, rows: int = 0) -> None:
    """``y = x w^T + b``: x ``[..., K]``, w ``[N, K]``, b ``[N]`` or None, y ``[..., N]``.

    With ``rows``, w and b are the first of several that lie one behind the other, N rows in all.
    """
    x, weight, bias = operands
    (y,) = results
    assert x is not None, "a product has an operand"
    assert weight is not None, "a product has a weight"
    if rows:
        weight = weight.as_strided((rows, weight.shape[1]), (weight.shape[1], 1))
        bias = None if bias is None else bias.as_strided((rows,), (1,))
    flat, out = x.reshape(-1, x.shape[-1]), _rows(y)
    if out is None:
        y.copy_(F.linear(x, weight, bias))
    elif bias is None:
        torch.mm(flat, weight.t(), out=out)
    else:
        torch.addmm(bias, flat, weight.t(), out=out)


def _rows(y: Tensor) -> Tensor | None:
    """All dims but the last as one, on the same memory; None where that cannot be."""
    try:
        return y.view(-1, y.shape[-1])
    except RuntimeError:
        return None


@library
def attention(
    operands: Sequence[Tensor | None], results: Sequence[Tensor], **attributes: Any
) -> None:
    """Scaled dot-product attention: q, k, v ``[B, H, S, D]`` and a mask or None; keys and values
    may have fewer heads. ``attributes`` are those of torch's function.
    """
    q, k, v, mask = operands
    assert q is not None, "attention has queries"
    grouped = k is not None and k.shape[1] != q.shape[1]
    function: Any = F.scaled_dot_product_attention
    results[0].copy_(function(q, k, v, attn_mask=mask, enable_gqa=grouped, **attributes))


@library
def topk(
    operands: Sequence[Tensor | None],
    results: Sequence[Tensor],
    *,
    axis: int,
    largest: bool,
    ordered: bool,
) -> None:
    """The largest or smallest elements of x along an axis, as many as the results have there."""
    (x,) = operands
    assert x is not None, "a selection has an operand"
    values, indices = results
    torch.topk(x, values.shape[axis], axis, largest, ordered, out=(values, indices))
