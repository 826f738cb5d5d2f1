"""Gathers, in-place writes by index, and argmax against torch: copies are exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.codegen.cpu.gather import (
    ArgmaxKernel,
    GatherKernel,
    IndexWriteKernel,
    argmax_scratch_bytes,
)
from tests.codegen.cpu.harness import build
from tests.codegen.oracle import DTYPES, seeded

INDICES = {"i64": torch.int64, "i32": torch.int32}


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_table(dtype: str, index: str) -> None:
    width, rows = 37, 11
    table = seeded(rows, width + 4, dtype=DTYPES[dtype])[:, 2 : width + 2]
    kernel = build(GatherKernel(dtype, (index,), 1, wraps=False))
    for count in (0, 1, 13):
        ids = torch.arange(count * 2).mul(7).remainder(rows).to(INDICES[index])[::2]
        y = torch.full((count + 1, width), 7.0).to(DTYPES[dtype])
        kernel([ids, table, y], [count, 0, 2, rows, table.stride(0), width], nth=3)
        assert torch.equal(y[:count], F.embedding(ids, table))
        assert bool((y[count] == 7.0).all())


@pytest.mark.parametrize("wraps", [False, True])
def test_an_index_outside_the_table_is_not_read(wraps: bool) -> None:
    for dtype in DTYPES:
        table = seeded(3, 8, dtype=DTYPES[dtype])
        y = torch.zeros(3, 8, dtype=DTYPES[dtype])
        ids = torch.tensor([-1, 1, 3])
        with pytest.raises(IndexError):
            build(GatherKernel(dtype, ("i64",), 1, wraps))([ids, table, y], [3, 0, 1, 3, 8, 8])
        assert torch.equal(y[1], table[1])
        assert torch.equal(y[0], table[2] if wraps else torch.zeros_like(y[0]))
        assert not y[2].any()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i64", "bool"])
def test_index_write(dtype: str) -> None:
    """Into a cache along its third axis, from a transposed source; nothing is written outside."""
    kind = {**DTYPES, "i64": torch.int64, "bool": torch.bool}[dtype]
    batch, heads, rows, width = 2, 3, 9, 20
    src = seeded(batch, 4, heads, width, dtype=torch.float32, scale=9.0).to(kind).transpose(1, 2)
    for index in INDICES:
        cache = torch.zeros(batch, heads, rows, width, dtype=kind)
        where = torch.tensor([8, 0, 3, 5], dtype=INDICES[index])
        expected = cache.index_copy(2, where.long(), src)
        dims = [batch, heads, 4, width, rows, *src.stride()[:3], *cache.stride()[:3], 0]
        kernel = build(IndexWriteKernel(dtype, index))
        kernel([where, src, cache], dims, nth=3)
        assert torch.equal(cache, expected)
        for outside in (rows, -1):
            with pytest.raises(IndexError):
                kernel([torch.full((4,), outside, dtype=INDICES[index]), src, cache], dims)
        assert torch.equal(cache, expected)


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 2), (3, 2)])
def test_index_write_into_a_part_where_the_last_of_equal_places_counts(
    batch: int, heads: int
) -> None:
    """However many workers there are, and from whichever element of the buffer on."""
    rows, width, count = 7, 5, 40
    src = seeded(batch, heads, count, width, dtype=torch.float32)
    at = torch.arange(count).mul(5).remainder(rows - 1)
    for nth in (1, 2, 3, 5):
        cache = torch.zeros(batch + 2, heads, rows, width)
        part = cache[1 : batch + 1]
        expected = torch.zeros_like(cache)
        for s in range(count):
            expected[1 : batch + 1, :, at[s]] = src[:, :, s]
        dims = [batch, heads, count, width, rows, *src.stride()[:3], *cache.stride()[:3]]
        offset = int(part.storage_offset())
        build(IndexWriteKernel("f32"))([at, src, cache], [*dims, offset], nth=nth, threads=True)
        assert torch.equal(cache, expected)
        outside = at.clone()
        outside[-1] = rows
        with pytest.raises(IndexError):
            build(IndexWriteKernel("f32"))([outside, src, cache], [*dims, offset], nth=nth)


def argmax(x: Tensor, dtype: str, nth: int) -> Tensor:
    y = torch.full((x.shape[0],), -5)
    scratch = torch.full((argmax_scratch_bytes(x.shape[0], nth),), 255, dtype=torch.uint8)
    for kernel in ArgmaxKernel(dtype).launches():
        build(kernel)([x, y, scratch], [*x.shape, x.stride(0)], nth=nth)
    return y


@pytest.mark.parametrize("width", [1, 2, 63, 512, 5003, 20000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax(dtype: str, width: int) -> None:
    """bf16 has many equal elements: the first counts, in whichever part it lies."""
    for rows in (0, 1, 3, 9):
        x = seeded(rows, width + 2, dtype=DTYPES[dtype])[:, 1 : width + 1]
        for nth in (1, 2, 3):
            assert torch.equal(argmax(x, dtype, nth), x.argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_of_special_rows(dtype: str) -> None:
    x = torch.full((7, 9001), -torch.inf).to(DTYPES[dtype])
    x[1, 9000] = torch.finfo(x.dtype).min
    x[2, 4000], x[2, 8000] = torch.inf, torch.inf
    x[3, 8999], x[3, 9000], x[3, 10] = torch.nan, torch.nan, torch.inf
    x[4] = -0.0
    x[4, 5] = 0.0
    x[5, 0] = torch.nan
    x[6, 700], x[6, 5000] = 3.0, torch.nan
    for nth in (1, 2, 3):
        assert torch.equal(argmax(x[:2], dtype, nth), x[:2].argmax(-1))
        assert torch.equal(argmax(x, dtype, nth), x.argmax(-1))
