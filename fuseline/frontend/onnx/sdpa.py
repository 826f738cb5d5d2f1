"""Attention as exporters of torch spell it, as the op that torch has for it.

That is a softmax of the scores, zeros where it has no number (a query that may see no key), and a
product with the values. The scale is often on queries and keys, half on each. What the mask means
is for the passes to find out.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.frontend.builder import Builder
from fuseline.frontend.onnx.idioms import is_number, number
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.matmul import Matmul, Sdpa
from fuseline.ir.ops.reduce import Softmax
from fuseline.ir.ops.view import Permute, Reshape
from fuseline.ir.types import same


@dataclass
class _Scores:
    """A product of queries and keys, and what is done to it."""

    product: Matmul
    scale: float
    mask: Value | None


def sdpa(b: Builder, weights: Value, v: Value) -> Value | None:
    """The op, where these are attention's weights and its values; else None."""
    softmax = _guarded(weights)
    if softmax is None or softmax.axis != softmax.x.tensor.rank - 1:
        return None
    scores = _scores(softmax.x)
    if scores is None:
        return None
    q, scale = _scaled(scores.product.lhs, scores.scale)
    k, scale = _scaled(scores.product.rhs, scale)
    k = _keys(b, k)
    if not (q.tensor.rank == k.tensor.rank == v.tensor.rank == 4):
        return None
    if not all(map(same, q.shape[:2], k.shape[:2])) or not all(map(same, k.shape[:3], v.shape[:3])):
        return None
    if scores.mask is not None and scores.mask.dtype is not q.dtype:
        return None
    return b.add(Sdpa(q, k, v, scores.mask, scale=scale)).y


def _guarded(weights: Value) -> Softmax | None:
    """The softmax of ``where(isnan(softmax), 0, softmax)``."""
    match weights.owner:
        case p.Where(condition, zero, found) if is_number(zero, 0):
            test = condition.owner
            if isinstance(test, p.Ne) and test.lhs is found and test.rhs is found:
                return found.owner if isinstance(found.owner, Softmax) else None
            return None
        case _:
            return None


def _scores(value: Value) -> _Scores | None:
    """``product * scale + mask``, of which the product alone must be there."""
    if isinstance(value.owner, p.Add):
        lhs, rhs = value.owner.lhs, value.owner.rhs
        for inner, mask in ((lhs, rhs), (rhs, lhs)):
            product, scale = _scaled(inner, 1.0)
            if isinstance(product.owner, Matmul):
                return _Scores(product.owner, scale, mask)
        return None
    product, scale = _scaled(value, 1.0)
    return _Scores(product.owner, scale, None) if isinstance(product.owner, Matmul) else None


def _scaled(value: Value, scale: float) -> tuple[Value, float]:
    """x and the scale of a ``x * number``, or ``x / number``."""
    match value.owner:
        case p.Mul(lhs, rhs):
            for x, factor in ((lhs, rhs), (rhs, lhs)):
                found = number(factor)
                if found is not None and x.shape == value.shape:
                    return x, scale * found
        case p.Div(lhs, rhs):
            found = number(rhs)
            if found and lhs.shape == value.shape:
                return lhs, scale / found
        case _:
            pass
    return value, scale


def _keys(b: Builder, turned: Value) -> Value:
    """The keys ``[B, H, S, D]`` of ones that were turned to ``[B, H, D, S]``."""
    if turned.tensor.rank != 4:
        return turned
    batch, heads, width, length = turned.shape
    want = (batch, heads, length, width)
    match turned.owner:
        case Permute(x, dims=(0, 1, 3, 2)):
            return x
        case Reshape(x) if isinstance(x.owner, Permute) and x.owner.dims == (0, 2, 1):
            flat = x.owner.x
            source = flat.owner.x if isinstance(flat.owner, Reshape) else flat
            if source.shape == want:
                return source
            if flat.shape[1:] == want[2:]:
                return b.reshape(flat, want)
        case _:
            pass
    return b.permute(turned, (0, 1, 3, 2))


__all__ = ["sdpa"]
