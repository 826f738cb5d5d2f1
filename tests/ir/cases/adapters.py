"""Cases of low-rank adapters."""

from __future__ import annotations

from typing import Any

import torch

from fuseline.ir.core import Op
from fuseline.ir.types import DType
from tests.ir.cases.base import EXTENTS, FLOATS, Case, case


@case("multi_lora")
def _(c: Case, op: type[Any]) -> Op:
    dtype, lead = c.one_of(FLOATS), c.shape(1)
    k, n, rank, count = (c.one_of(EXTENTS) for _ in range(4))
    a_transposed, b_transposed, skips = c.flag(), c.flag(), c.flag()
    generator = torch.Generator().manual_seed(c.number(0, 99))
    ids = torch.randint(0, count + skips, lead, generator=generator)
    rounds = c.flag()
    return op(
        c.arg(dtype, [*lead, k], static=1),
        c.arg(DType.I64, lead, values=ids),
        c.arg(dtype, [count, k, rank] if a_transposed else [count, rank, k], static=3),
        c.arg(dtype, [count, rank, n] if b_transposed else [count, n, rank], static=3),
        c.maybe(lambda: c.arg(c.one_of(FLOATS), [*lead, n], static=1)),
        c.maybe(lambda: c.arg(c.one_of(FLOATS), lead)) if rounds else None,
        scale=c.one_of([1.0, 0.3]),
        inner=rounds and c.flag(),
        a_transposed=a_transposed,
        b_transposed=b_transposed,
        skips=skips,
        rounds=rounds,
        delta_dtype=dtype if rounds else c.one_of([DType.F32, DType.F64]),
        dtype=c.one_of(FLOATS),
    )
