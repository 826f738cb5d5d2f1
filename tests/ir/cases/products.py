"""Cases of products and of attention."""

from __future__ import annotations

from typing import Any

from fuseline.ir.core import Op, Value
from fuseline.ir.types import DType
from tests.ir.cases.base import EXTENTS, FLOATS, Case, case
from tests.ir.cases.elementwise import broadcast_sizes


@case("linear")
def _(c: Case, op: type[Any]) -> Op:
    dtype, k, n = c.one_of(FLOATS), c.one_of(EXTENTS), c.one_of(EXTENTS)
    return op(
        c.arg(dtype, [*c.shape(), k]), c.arg(dtype, [n, k]), c.maybe(lambda: c.arg(dtype, [n]))
    )


@case("matmul")
def _(c: Case, op: type[Any]) -> Op:
    dtype, (m, k, n) = c.one_of(FLOATS), c.shape(3, 3)
    batches = broadcast_sizes(c, 2)
    return op(c.arg(dtype, [*batches[0], m, k]), c.arg(dtype, [*batches[1], k, n]))


def _qkv(c: Case, dtype: DType) -> tuple[Value, Value, Value, list[int]]:
    """q, k, v with grouped heads, and the shape of the scores."""
    b, groups, times, sq, sk = c.shape(5, 5)
    d, dv = c.one_of(EXTENTS), c.one_of(EXTENTS)
    heads = groups * times
    q = c.arg(dtype, [b, heads, sq, d], static=1)
    k = c.arg(dtype, [b, groups, sk, d], static=1)
    return q, k, c.arg(dtype, [b, groups, sk, dv], static=1), [b, heads, sq, sk]


@case("sdpa")
def _(c: Case, op: type[Any]) -> Op:
    q, k, v, scores = _qkv(c, c.one_of(FLOATS))
    causal = c.flag()
    mask = None if causal else c.maybe(lambda: c.arg(DType.BOOL, scores[-2:]))
    return op(q, k, v, mask, is_causal=causal, scale=c.one_of([None, 0.5]), enable_gqa=True)


@case("attention")
def _(c: Case, op: type[Any]) -> Op:
    q, k, v, scores = _qkv(c, c.one_of(FLOATS))
    return op(
        q,
        k,
        v,
        c.maybe(lambda: c.arg(c.one_of([DType.BOOL, q.dtype]), [scores[0], 1, *scores[2:]])),
        c.maybe(lambda: c.arg(DType.I64, [scores[0], scores[2]] if c.flag() else [scores[2]])),
        c.maybe(lambda: c.arg(q.dtype, [scores[1]])),
        scale=0.5,
        causal=c.flag(),
        window=c.one_of([None, 2]),
        softcap=c.one_of([None, 3.0]),
    )
