"""Cases of latent attention and of what stands before it."""

from __future__ import annotations

from typing import Any

from fuseline.ir.core import Op
from fuseline.ir.types import DType
from tests.ir.cases.base import EXTENTS, FLOATS, Case, case
from tests.ir.cases.norms import norm_attributes


@case("latent_attention")
def _(c: Case, op: type[Any]) -> Op:
    dtype, (b, h, sq, sk) = c.one_of(FLOATS), c.shape(4, 4)
    latent, key, value, shared = (c.one_of(EXTENTS) for _ in range(4))
    shared, split = c.one_of([0, shared]), c.flag()
    groups = c.one_of([h, 1])
    return op(
        c.arg(dtype, [b, h, sq, key + shared], static=3),
        c.arg(dtype, [b, 1, sk, latent], static=1),
        c.arg(dtype, [groups * (key if split else key + value), latent], static=2),
        c.arg(dtype, [b, 1, sk, shared], static=1) if shared else None,
        c.maybe(lambda: c.arg(c.one_of([DType.BOOL, dtype]), [b, 1, sq, sk], static=2)),
        c.maybe(lambda: c.arg(DType.I64, [b, sq] if c.flag() else [sq], static=1)),
        c.maybe(lambda: c.arg(dtype, [h], static=1)),
        c.arg(dtype, [groups * value, latent], static=2) if split else None,
        key=key,
        value=value,
        scale=0.5,
        causal=c.flag(),
        window=c.one_of([None, 2]),
        softcap=c.one_of([None, 3.0]),
    )


def _latent_rows(c: Case) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The fields that the two ops share, and batch, tokens and widths."""
    dtype, (b, s) = c.one_of(FLOATS), (c.one_of(EXTENTS), c.one_of(EXTENTS))
    widths = [2 * c.one_of(EXTENTS) for _ in range(3)]
    rows = [c.arg(dtype, [b, s, w], static=1) for w in widths]
    table, rotated = c.one_of(["full", "half"]), c.flag()
    columns = widths[1] if table == "full" else widths[1] // 2
    cos, sin = (
        c.arg(dtype, [c.one_of([1, b]), s, columns], static=1) if rotated else None for _ in "cs"
    )
    fields = {
        "latent": rows[0],
        "shared": rows[1],
        "q": c.one_of([None, rows[2]]),
        "latent_weight": c.maybe(lambda: c.arg(dtype, widths[:1], static=1)),
        "cos": cos,
        "sin": sin,
        **norm_attributes(c),
        "norm": c.flag(),
        "scale": c.one_of([1.0, 2.5]),
        "style": c.one_of(["half", "interleaved", "deinterleave"]),
        "table": table,
        "width": widths[1],
        "sign": c.one_of([1, -1]),
        "round": c.flag(),
    }
    return fields, (b, s, *widths)


@case("mla_projection")
def _(c: Case, op: type[Any]) -> Op:
    return op(**_latent_rows(c)[0])


@case("mla_projection_write")
def _(c: Case, op: type[Any]) -> Op:
    (fields, (b, s, latent, shared, _)), longest = _latent_rows(c), 7
    dtype, lead = fields["latent"].dtype, [b, 1] if c.flag() else [b]
    caches = {
        f"{name}_cache": c.arg(dtype, [*lead, longest, width], static=len(lead) + 1, buffer=True)
        for name, width in (("latent", latent), ("shared", shared))
    }
    return op(**fields, index=c.distinct(s, longest), **caches)
