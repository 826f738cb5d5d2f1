"""Latent attention kernels against the op's meaning, in float64 and in the model's own dtype."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.codegen.cpu.latent import AbsorbedKernel, ExpandedKernel, LatentKernel
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.types import substitute
from tests.codegen.cpu.harness import build
from tests.codegen.oracle import DTYPES, assert_numbers, broadcast_masks, seeded


@dataclass(frozen=True)
class Geometry:
    """Heads and widths."""

    heads: int = 4
    key: int = 24
    value: int = 16
    latent: int = 40
    shared: int = 8

    def kernel(self, kind: str, dtype: str, **more: Any) -> LatentKernel:
        given: dict[str, Any] = {"scale": (self.key + self.shared) ** -0.5, "dtype": dtype}
        given |= {"width": self.key + self.shared, "key": self.key, "value": self.value}
        given |= {"latent": self.latent, "shared": self.shared, **more}
        if kind == "absorbed":
            return AbsorbedKernel(group=self.heads, value_width=self.latent, **given)
        return ExpandedKernel(group=1, value_width=self.value, all_heads=self.heads, **given)


KINDS = ("absorbed", "expanded")
SMALL = Geometry()


@dataclass
class Case:
    """Sizes and operands of one attention; q, the caches and y are strided slices of wider ones."""

    geometry: Geometry = SMALL
    batch: int = 2
    keys: int = 70
    queries: int = 1
    positions: Tensor | None = None
    mask: Tensor | None = None
    sinks: Tensor | None = None
    given: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """q is a permuted view of what a product gives, the caches have room behind their rows."""
        g = self.geometry
        q = seeded(self.batch, self.queries, g.heads, g.key + g.shared + 3, dtype=dtype, seed=1)
        weight = seeded(g.heads * (g.key + g.value), g.latent, dtype=torch.float32, seed=2)
        caches = [
            seeded(self.batch, 1, self.keys + 2, width + 5, dtype=dtype, seed=seed)
            for width, seed in ((g.latent, 3), (g.shared, 4))
        ]
        found = {
            "q": q[..., 1 : g.key + g.shared + 1].transpose(1, 2),
            "latent": caches[0][:, :, 1 : self.keys + 1, 2 : g.latent + 2],
            "weight": (weight * g.latent**-0.5).to(dtype),
        }
        if g.shared:
            found["shared"] = caches[1][:, :, : self.keys, 3 : g.shared + 3]
        return found | self.given

    def run(self, kernel: LatentKernel, given: dict[str, Tensor], nth: int) -> Tensor:
        g = self.geometry
        target = torch.full((self.batch, self.queries, g.heads, g.value + 1), 7.0)
        target = target.to(DTYPES[kernel.dtype])
        y = target[..., : g.value].transpose(1, 2)
        groups = g.heads // kernel.group
        dims = {"B": self.batch, "Hk": groups, "Sq": self.queries, "Sk": self.keys}
        for name in ("q", "y"):
            value = y if name == "y" else given[name]
            dims |= {f"{name}_{axis}": value.stride(i) for i, axis in enumerate("bhs")}
        for name in ("latent", "shared"):
            if name in given:
                dims |= {f"{name}_b": given[name].stride(0), f"{name}_s": given[name].stride(2)}
        if self.mask is not None:
            shape = (self.batch, g.heads, self.queries, self.keys)
            strides = self.mask.expand(shape).stride()
            dims |= {f"mask_{axis}": strides[i] for i, axis in enumerate("bhqk")}
        if self.positions is not None:
            dims["positions_b"] = self.positions.stride(0) if self.positions.dim() > 1 else 0
        more = {"mask": self.mask, "positions": self.positions, "sinks": self.sinks, "y": y}
        rows = self.batch * g.heads * self.queries
        size = substitute(kernel.latent_scratch(rows, self.keys, nth), {})
        more["scratch"] = torch.full((size + 64,), 255, dtype=torch.uint8)
        bufs = [(given | more)[name] for name in kernel.buffers]
        for launch in kernel.launches():
            build(launch)(bufs, [dims[name] for name in kernel.dims], nth=nth)
        assert bool((target[..., g.value :] == 7.0).all())
        assert bool((more["scratch"][size:] == 255).all())
        return y.contiguous()

    def reference(self, kernel: LatentKernel, given: dict[str, Tensor], *, double: bool) -> Tensor:
        same = ("key", "value", "scale", "causal", "window", "softcap")
        attributes: dict[str, Any] = {name: getattr(kernel, name) for name in same}
        names = ("q", "latent", "weight", "shared")
        operands = [given.get(name) for name in names]
        mask = self.mask
        if double:
            operands = [None if t is None else t.double() for t in operands]
            if mask is not None and mask.dtype.is_floating_point:
                mask = mask.double()
        q, latent, weight, shared = operands
        assert q is not None
        assert latent is not None
        assert weight is not None
        return LatentAttention.reference(
            q, latent, weight, shared, mask, self.positions, self.sinks, None, **attributes
        )


def check(kernel: LatentKernel, case: Case, nth: int = 1) -> Tensor:
    given = case.tensors(DTYPES[kernel.dtype])
    got = case.run(kernel, given, nth)
    eager, oracle = (case.reference(kernel, given, double=double) for double in (False, True))
    # In 16 bits eager rounds keys and values, which do not exist in the latent space.
    like_eager = kernel.dtype == "f32" or isinstance(kernel, ExpandedKernel)
    assert_numbers(got, eager, oracle, like_eager=like_eager)
    return got


slow = pytest.mark.slow
WIDTHS = (  # key, value, latent, shared
    ("f32", 64, 64, 256, 32),
    ("bf16", 12, 20, 40, 5),
    pytest.param("f16", 33, 47, 112, 64, marks=slow),
    pytest.param("f32", 7, 1, 24, 1, marks=slow),
    pytest.param("bf16", 1, 13, 64, 16, marks=slow),
    pytest.param("f16", 80, 96, 40, 0, marks=slow),
    pytest.param("bf16", 128, 128, 512, 64, marks=slow),
)


@pytest.mark.parametrize(("dtype", "key", "value", "latent", "shared"), WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_widths(kind: str, dtype: str, key: int, value: int, latent: int, shared: int) -> None:
    geometry = Geometry(key=key, value=value, latent=latent, shared=shared)
    kernel = geometry.kernel(kind, dtype, causal=True, positions=True)
    check(kernel, Case(geometry, keys=71, positions=torch.tensor([60])), nth=3)
    positions = torch.tensor([[60, 61, 62], [3, 4, 5]])
    check(kernel, Case(geometry, queries=3, keys=71, positions=positions), nth=2)


@pytest.mark.parametrize("heads", [1, 3, *(pytest.param(n, marks=slow) for n in (2, 16, 40, 128))])
@pytest.mark.parametrize("kind", KINDS)
def test_heads(kind: str, heads: int) -> None:
    geometry = Geometry(heads=heads)
    kernel = geometry.kernel(kind, "bf16", causal=True, positions=True)
    for queries in (1, 2, 5, 17):
        positions = torch.arange(queries) + 50
        check(kernel, Case(geometry, queries=queries, positions=positions), nth=2)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_keys(kind: str, dtype: str) -> None:
    every, causal = SMALL.kernel(kind, dtype), SMALL.kernel(kind, dtype, causal=True)
    for keys in (1, 2, 11, 12, 13, 47, 48, 49, 97, 257):
        check(every, Case(keys=keys), nth=2)
        check(causal, Case(keys=keys, queries=keys), nth=2)


@pytest.mark.parametrize("nth", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_workers(kind: str, nth: int) -> None:
    """The same result whatever the number of workers, and the same in every run."""
    case = Case(batch=1, keys=701, positions=torch.tensor([650]))
    kernel = SMALL.kernel(kind, "f32", causal=True, positions=True)
    got = check(kernel, case, nth=nth)
    given = case.tensors(torch.float32)
    assert torch.equal(case.run(kernel, given, nth), got)
    torch.testing.assert_close(got, case.run(kernel, given, 1), rtol=1e-5, atol=1e-6)


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_windows_caps_and_sinks(kind: str) -> None:
    for dtype, more in (
        ("f32", {"window": 17}),
        ("bf16", {"window": 1}),
        ("f32", {"softcap": 2.0, "window": 64}),
        ("f16", {"softcap": 30.0, "sinks": "f32", "window": 33}),
    ):
        kernel = SMALL.kernel(kind, dtype, causal=True, positions=True, scale=0.5, **more)
        sinks = seeded(4, dtype=torch.float32, seed=5) if "sinks" in more else None
        positions = torch.tensor([[30, 31, 32, 33], [160, 161, 170, 169]])
        case = Case(keys=200, queries=4, positions=positions, sinks=sinks)
        check(kernel, case, nth=2)


def test_sinks_count_once_where_keys_are_split() -> None:
    sinks = torch.tensor([1.0, -torch.inf, 0.5, 3.0])
    kernel = SMALL.kernel("absorbed", "f32", sinks="f32")
    check(kernel, Case(batch=1, keys=700, sinks=sinks), nth=4)


@slow
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks(kind: str, dtype: str) -> None:
    queries, keys = 5, 70
    for name, mask in broadcast_masks(dtype, queries, keys):
        kernel = SMALL.kernel(kind, dtype, mask=name)
        check(kernel, Case(queries=queries, keys=keys, mask=mask), nth=2)


@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_see_no_key_are_zero(kind: str, dtype: str) -> None:
    keep = torch.ones(1, 1, 3, 70, dtype=torch.bool)
    keep[..., 1, :] = False
    got = check(SMALL.kernel(kind, dtype, mask="bool"), Case(queries=3, mask=keep))
    assert bool((got[:, :, 1] == 0).all())
    case = Case(queries=3, positions=torch.tensor([-1, 0, 5]))
    got = check(SMALL.kernel(kind, dtype, causal=True, positions=True), case, nth=2)
    assert bool((got[:, :, 0] == 0).all())
    assert bool((check(SMALL.kernel(kind, dtype), Case(keys=0)) == 0).all())


@pytest.mark.parametrize("dtype", ["bf16", *(pytest.param(d, marks=slow) for d in ("f32", "f16"))])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_nobody_sees_may_hold_anything(kind: str, dtype: str) -> None:
    """A static cache holds anything behind the last token, and in front of padded rows."""
    case = Case(queries=2, keys=300, positions=torch.tensor([[65, 66], [2, 3]]))
    kernel = SMALL.kernel(kind, dtype, causal=True, positions=True)
    keep = torch.zeros(2, 1, 1, 300, dtype=torch.bool)
    keep[0, ..., 10:67], keep[1, ..., 1:4] = True, True
    masked = Case(queries=2, keys=300, mask=keep)
    for each, one in ((case, kernel), (masked, SMALL.kernel(kind, dtype, mask="bool"))):
        given = each.tensors(DTYPES[dtype])
        expected = each.run(one, given, 2)
        for name in ("latent", "shared"):
            given[name] = given[name].clone()
            given[name][0, :, 67:] = torch.nan
            given[name][1, :, 4:] = torch.nan
            if each is masked:
                given[name][0, :, :10] = torch.nan
        assert torch.equal(each.run(one, given, 2), expected)
        assert bool(expected.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_large_scores(kind: str) -> None:
    check(SMALL.kernel(kind, "f32", scale=30.0), Case(), nth=2)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(kind: str) -> None:
    for batch, queries in ((0, 3), (2, 0)):
        case = Case(batch=batch, queries=queries)
        kernel = SMALL.kernel(kind, "f32", causal=True)
        assert case.run(kernel, case.tensors(torch.float32), 2).numel() == 0
