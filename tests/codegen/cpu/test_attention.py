"""Attention kernels against the meaning of the op, in float64 and in the model's own dtype."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.codegen.cpu.attention import (
    AttentionKernel,
    BlockedAttentionKernel,
    DecodeAttentionKernel,
    attention_kind,
)
from fuseline.ir.ops.raised import attention_reference
from tests.codegen.cpu.harness import build
from tests.codegen.oracle import DTYPES, assert_numbers, broadcast_masks, seeded

KINDS = {"decode": DecodeAttentionKernel, "blocked": BlockedAttentionKernel}


@dataclass
class Case:
    """Sizes and operands of one attention; q, k and v are strided slices of wider tensors."""

    batch: int = 2
    keys: int = 70
    queries: int = 3
    kv_heads: int = 2
    positions: Tensor | None = None
    mask: Tensor | None = None
    sinks: Tensor | None = None
    fill: dict[str, float] = field(default_factory=dict[str, float])

    def tensors(self, kernel: AttentionKernel) -> dict[str, Tensor]:
        dtype, heads = DTYPES[kernel.dtype], self.kv_heads * kernel.group

        def rows(name: str, n: int, h: int, width: int, seed: int) -> Tensor:
            wide = seeded(self.batch, n, h, width + 3, dtype=dtype, seed=seed)
            return wide[..., 1 : width + 1].transpose(1, 2)

        q = rows("q", self.queries, heads, kernel.width, 1)
        k = rows("k", self.keys, self.kv_heads, kernel.width, 2)
        v = rows("v", self.keys, self.kv_heads, kernel.value_width, 3)
        return {"q": q, "k": k, "v": v}

    def run(self, kernel: AttentionKernel, given: dict[str, Tensor], nth: int) -> Tensor:
        heads, width = self.kv_heads * kernel.group, kernel.value_width
        target = torch.full((self.batch, self.queries, heads, width + 1), 7.0)
        target = target.to(DTYPES[kernel.dtype])
        y = target[..., :width].transpose(1, 2)
        dims = {"B": self.batch, "Hk": self.kv_heads, "Sq": self.queries, "Sk": self.keys}
        for name, value in (given | {"y": y}).items():
            dims |= {f"{name}_{axis}": value.stride(i) for i, axis in enumerate("bhs")}
        if self.mask is not None:
            shape = (self.batch, heads, self.queries, self.keys)
            strides = self.mask.expand(shape).stride()
            dims |= {f"mask_{axis}": strides[i] for i, axis in enumerate("bhqk")}
        if self.positions is not None:
            dims["positions_b"] = self.positions.stride(0) if self.positions.dim() > 1 else 0
        size = kernel.scratch_bytes(self.batch * heads * self.queries)
        more = {"mask": self.mask, "positions": self.positions, "sinks": self.sinks, "y": y}
        more["scratch"] = torch.full((size,), 255, dtype=torch.uint8)
        bufs = [(given | more)[name] for name in kernel.buffers]
        for launch in kernel.launches():
            build(launch)(bufs, [dims[name] for name in kernel.dims], nth=nth)
        assert bool((target[..., width:] == 7.0).all())
        return y.contiguous()

    def reference(self, kernel: AttentionKernel, given: dict[str, Tensor], double: bool) -> Tensor:
        q, k, v = (t.double() if double else t for t in given.values())
        same = ("scale", "causal", "window", "softcap")
        attributes: dict[str, Any] = {name: getattr(kernel, name) for name in same}
        mask = self.mask
        if double and mask is not None and mask.dtype.is_floating_point:
            mask = mask.double()
        return attention_reference(q, k, v, mask, self.positions, self.sinks, **attributes)


def check(kernel: AttentionKernel, case: Case, nth: int = 1) -> Tensor:
    given = case.tensors(kernel)
    got = case.run(kernel, given, nth)
    eager, oracle = (case.reference(kernel, given, double) for double in (False, True))
    assert_numbers(got, eager, oracle)
    return got


@pytest.mark.parametrize("width", [64, 80, 96, 112, 128, 20, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_head_widths(kind: str, width: int) -> None:
    for dtype in DTYPES if width in (64, 20) else ("bf16",):
        kernel = KINDS[kind](dtype, 2, width, width, width**-0.5, causal=True, positions=True)
        check(kernel, Case(positions=torch.tensor([40, 41, 42])), nth=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "value_width"), [(192, 128), (576, 512), (40, 72), (72, 36)])
def test_values_of_another_width(dtype: str, width: int, value_width: int) -> None:
    """MLA: expanded heads of 192 and 128, and the latent space of 576 and 512."""
    kernel = BlockedAttentionKernel(dtype, 4, width, value_width, width**-0.5, causal=True)
    check(kernel, Case(queries=37, keys=37, kv_heads=1, batch=1), nth=2)
    if width <= 192:
        decode = DecodeAttentionKernel(dtype, 4, width, value_width, width**-0.5)
        check(decode, Case(queries=1), nth=2)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_groups(kind: str, group: int) -> None:
    for dtype in ("f32", "bf16") if group in (1, 2) else ("f16",):
        kernel = KINDS[kind](dtype, group, 32, 32, 0.2, causal=True, positions=True)
        for queries in (1, 5):
            positions = torch.arange(queries) + 60
            check(kernel, Case(queries=queries, positions=positions), nth=3)


@pytest.mark.parametrize("keys", [1, 2, 3, 63, 64, 65, 127, 130, 257])
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_sizes(kind: str, keys: int) -> None:
    """As many queries as keys, causal from position 0; and every key seen."""
    queries = keys if kind == "blocked" else min(keys, 5)
    for causal in (True, False):
        kernel = KINDS[kind]("bf16", 2, 32, 32, 0.3, causal=causal)
        for nth in (1, 2, 3):
            check(kernel, Case(queries=queries, keys=keys, batch=1), nth=nth)


@pytest.mark.parametrize("nth", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_split_over_workers(kind: str, nth: int) -> None:
    for context in (1, 130, 700):
        positions = torch.tensor([context - 1])
        kernel = KINDS[kind]("f32", 3, 64, 64, 0.125, causal=True, positions=True, max_splits=5)
        case = Case(batch=1, kv_heads=1, queries=1, keys=700, positions=positions)
        check(kernel, case, nth=nth)


def test_split_keys_with_sinks_windows_and_values_of_odd_width() -> None:
    sinks = torch.tensor([1.0, -torch.inf, 0.5])
    for kind in KINDS.values():
        more: dict[str, Any] = {"max_splits": 3, "sinks": "f32", "window": 300}
        kernel = kind("bf16", 3, 64, 40, 0.125, causal=True, positions=True, **more)
        positions = torch.tensor([599, 650])
        case = Case(batch=1, kv_heads=1, queries=2, keys=700, positions=positions, sinks=sinks)
        check(kernel, case, nth=4)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_caps_and_sinks(kind: str) -> None:
    heads = 4
    for dtype, more in (
        ("f32", {"window": 17}),
        ("bf16", {"window": 1}),
        ("f16", {"softcap": 2.0}),
        ("f32", {"softcap": 30.0, "window": 64}),
        ("bf16", {"sinks": "bf16"}),
    ):
        kernel = KINDS[kind](dtype, 2, 48, 48, 0.5, causal=True, positions=True, **more)  # pyright: ignore[reportArgumentType]
        sinks = seeded(heads, dtype=DTYPES[dtype], seed=5) if "sinks" in more else None
        positions = torch.tensor([[30, 31, 32, 33], [60, 61, 62, 69]])
        check(kernel, Case(queries=4, positions=positions, sinks=sinks), nth=2)
    check(KINDS[kind]("bf16", 2, 48, 48, 0.5, window=10), Case(queries=6), nth=2)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks(kind: str, dtype: str) -> None:
    queries, keys = 5, 70
    for name, mask in broadcast_masks(dtype, queries, keys):
        kernel = KINDS[kind](dtype, 2, 32, 32, 0.3, mask=name, causal=mask.shape[2] > 1)
        check(kernel, Case(queries=queries, keys=keys, mask=mask), nth=2)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_see_no_key_are_zero(kind: str, dtype: str) -> None:
    """As in torch's scaled dot product; a finite mask value spreads the weight evenly instead."""
    keep = torch.ones(1, 1, 3, 70, dtype=torch.bool)
    keep[..., 1, :] = False
    kernel = KINDS[kind](dtype, 2, 32, 32, 0.3, mask="bool")
    case = Case(mask=keep)
    got = check(kernel, case)
    assert bool((got[:, :, 1] == 0).all())
    q, k, v = case.tensors(kernel).values()
    eager = F.scaled_dot_product_attention(q, k, v, keep, scale=0.3, enable_gqa=True)
    assert bool((eager[:, :, 1] == 0).all())
    low = torch.zeros(1, 1, 3, 70, dtype=DTYPES[dtype]).masked_fill(~keep, -torch.inf)
    got = check(KINDS[kind](dtype, 2, 32, 32, 0.3, mask=dtype), Case(mask=low))
    assert bool((got[:, :, 1] == 0).all())
    least = low.clamp_min(torch.finfo(low.dtype).min)
    check(KINDS[kind](dtype, 2, 32, 32, 0.3, mask=dtype), Case(mask=least))
    negative = Case(positions=torch.tensor([-1, 0, 5]))
    got = check(KINDS[kind](dtype, 2, 32, 32, 0.3, causal=True, positions=True), negative, nth=2)
    assert bool((got[:, :, 0] == 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_keys_behind_the_position_are_not_read(kind: str) -> None:
    """A static cache holds anything behind the last token: NaN there must not come through."""
    kernel = KINDS[kind]("bf16", 2, 32, 32, 0.3, causal=True, positions=True)
    case = Case(queries=1, keys=300, positions=torch.tensor([[66], [3]]))
    given = case.tensors(kernel)
    expected = case.reference(kernel, given, double=False)
    for name in "kv":
        given[name] = given[name].clone()
        given[name][0, :, 67:] = torch.nan
        given[name][1, :, 4:] = torch.nan
    torch.testing.assert_close(case.run(kernel, given, 1), expected, rtol=1.6e-2, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_large_scores_and_special_values(kind: str) -> None:
    kernel = KINDS[kind]("f32", 2, 32, 32, 40.0)
    check(kernel, Case(), nth=2)
    case = Case(batch=1)
    given = case.tensors(kernel)
    given["k"][0, 0, 5] = torch.nan
    given["v"][0, 1, 7, 3] = torch.inf
    got = case.run(kernel, given, 1)
    q, k, v = given.values()
    eager = F.scaled_dot_product_attention(q, k, v, scale=40.0, enable_gqa=True)
    assert bool(got[0, :2].isnan().all())
    assert bool(got[0, 2:, :, 3].isfinite().logical_not().any())
    assert torch.equal(got.isnan(), eager.isnan())
    assert torch.equal(got.isinf(), eager.isinf())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(kind: str) -> None:
    kernel = KINDS[kind]("f32", 2, 32, 32, 0.3, causal=True)
    for batch, queries in ((0, 3), (2, 0)):
        case = Case(batch=batch, queries=queries)
        assert case.run(kernel, case.tensors(kernel), 2).numel() == 0


def test_choice_by_rows() -> None:
    assert attention_kind(2) is DecodeAttentionKernel
    assert attention_kind(16) is BlockedAttentionKernel
    assert attention_kind(None) is BlockedAttentionKernel
