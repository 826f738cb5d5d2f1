"""Row norms against the meaning of their ops, in float64 and in the model's own dtype."""

from __future__ import annotations

import itertools

import pytest
import torch

from fuseline.codegen.cpu.norm import NormKernel
from fuseline.codegen.norms import NormKind, promote
from fuseline.ir.ops.raised import CastPoint, layer_norm_reference, rms_norm_reference
from tests.codegen.cpu.harness import build
from tests.codegen.oracle import DTYPES, assert_numbers, seeded

WIDTHS = [1, 7, 31, 64, 80, 257, 576]


def reference(
    kernel: NormKernel, x: torch.Tensor, w: torch.Tensor | None, b: torch.Tensor | None
) -> torch.Tensor:
    if kernel.kind == "rms":
        return rms_norm_reference(x, w, eps=kernel.eps, offset=kernel.offset, cast=kernel.cast)
    return layer_norm_reference(x, w, b, eps=kernel.eps, cast=kernel.cast)


def check(kernel: NormKernel, outer: int, inner: int, nth: int = 1) -> None:
    """Rows read from and written to slices of wider buffers."""
    dtype, width = DTYPES[kernel.dtype], kernel.width
    wide = seeded(outer, inner + 1, width + 3, dtype=dtype, seed=1, scale=3.0)
    x = wide[:, 1:, 2 : width + 2]
    shape = (kernel.weight_rows, width) if kernel.weight_rows > 1 else (width,)
    w = seeded(*shape, dtype=DTYPES[kernel.weight], seed=2) if kernel.weight else None
    b = seeded(*shape, dtype=DTYPES[kernel.bias], seed=3) if kernel.bias else None
    target = torch.full((outer, inner + 2, width + 1), 7.0).to(DTYPES[kernel.out])
    y = target[:, :inner, :width]
    given: dict[str, torch.Tensor | None] = {"x": x, "weight": w, "bias": b, "y": y}
    total, exact = x, x.double()
    if kernel.residual:
        given["residual"] = r = seeded(outer, inner, width, dtype=dtype, seed=4)
        given["sum"] = torch.empty_like(r)
        total, exact = x + r, x.double() + r.double()
    strides = {"x": x, "residual": given.get("residual"), "sum": given.get("sum"), "y": y}
    dims = {"outer": outer, "inner": inner}
    for name, value in strides.items():
        if value is not None:
            dims |= {f"{name}_outer": value.stride(0), f"{name}_inner": value.stride(1)}
    build(kernel)([given[n] for n in kernel.buffers], [dims[n] for n in kernel.dims], nth=nth)
    if kernel.residual:
        assert given["sum"] is not None
        assert torch.equal(given["sum"], total)
    w64, b64 = (None if t is None else t.double() for t in (w, b))
    assert_numbers(
        y.contiguous(), reference(kernel, total, w, b), reference(kernel, exact, w64, b64)
    )
    assert bool((target[:, inner:] == 7.0).all())
    assert bool((target[..., width:] == 7.0).all())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: str, width: int) -> None:
    check(NormKernel(dtype, width, weight=dtype), 5, 3, nth=2)


@pytest.mark.parametrize("cast", ["before_weight", "last"])
@pytest.mark.parametrize(("dtype", "weight"), [*itertools.product(DTYPES, [*DTYPES, None])])
def test_rms_norm_spellings(dtype: str, weight: str | None, cast: CastPoint) -> None:
    for offset in (0.0, 1.0) if weight else (0.0,):
        kernel = NormKernel(dtype, 88, weight=weight, offset=offset, cast=cast, eps=1e-5)
        check(kernel, 3, 2)


@pytest.mark.parametrize("cast", ["before_weight", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: str, cast: CastPoint) -> None:
    for weight, bias in ((dtype, dtype), ("f32", None), (None, None), (None, dtype)):
        kernel = NormKernel(dtype, 80, "layer", weight, bias, cast=cast)
        check(kernel, 3, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_with_a_row_of_weights_per_head(dtype: str) -> None:
    """Cohere: weight ``[H, D]`` broadcasts over the last two dims."""
    check(NormKernel(dtype, 48, "layer", dtype, dtype, weight_rows=3, cast="last"), 5, 3, nth=3)


@pytest.mark.parametrize("width", [64, 100])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_norm(dtype: str, kind: NormKind, width: int) -> None:
    kernel = NormKernel(dtype, width, kind, weight=dtype, residual=True)
    check(kernel, 7, 1, nth=3)


def test_add_norm_may_overwrite_the_residual() -> None:
    kernel = NormKernel("bf16", 72, weight="bf16", residual=True)
    x, r, w = (
        seeded(*s, dtype=torch.bfloat16, seed=i) for i, s in enumerate([(5, 72), (5, 72), (72,)])
    )
    total, y = x + r, torch.empty_like(x)
    build(kernel)([x, r, w, r, y], [5, 1, *([72, 0] * 4)])
    assert torch.equal(r, total)
    assert_numbers(
        y, reference(kernel, total, w, None), reference(kernel, total.double(), w.double(), None)
    )


def test_no_rows() -> None:
    y = torch.full((1, 16), 3.0)
    build(NormKernel("f32", 16))([y, y], [0, 1, 16, 0, 16, 0], nth=2)
    build(NormKernel("f32", 16))([y, y], [4, 0, 16, 0, 16, 0])
    assert bool((y == 3.0).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_rows(dtype: str) -> None:
    """Zeros, an infinity, a NaN of every payload, denormals and the largest number: as in eager."""
    kernel = NormKernel(dtype, 64, weight=dtype, eps=1e-6)
    kind = DTYPES[dtype]
    x = seeded(7, 64, dtype=kind)
    x[0] = 0.0
    x[1, 5] = torch.inf
    x[2, 6] = torch.nan
    x[3] = torch.finfo(kind).smallest_normal / 4
    x[4] = torch.finfo(kind).max
    x.view(torch.int32 if dtype == "f32" else torch.int16)[5, 1] = (
        0x7FFFFFFF if dtype == "f32" else 0x7FFF
    )
    w = seeded(64, dtype=kind, seed=9)
    w[3], w[4] = torch.inf, torch.nan
    y = torch.empty_like(x)
    build(kernel)([x, w, y], [7, 1, 64, 0, 64, 0])
    eager = reference(kernel, x, w, None)
    assert torch.equal(y.isnan(), eager.isnan())
    assert torch.equal(y.isinf(), eager.isinf())
    finite = eager.isfinite()
    torch.testing.assert_close(
        y[finite], eager[finite], rtol=2e-2 if dtype == "bf16" else 2e-3, atol=1e-5
    )


def test_bf16_rounds_where_eager_rounds() -> None:
    """Equal to eager bit for bit but for a rare tie: the rounding points are eager's."""
    kernel = NormKernel("bf16", 256, weight="bf16")
    x, w = seeded(64, 256, dtype=torch.bfloat16), seeded(256, dtype=torch.bfloat16, seed=1)
    y = torch.empty_like(x)
    build(kernel)([x, w, y], [64, 1, 256, 0, 256, 0])
    assert float((y != reference(kernel, x, w, None)).float().mean()) < 1e-3


def test_promotion_is_that_of_torch() -> None:
    names = {v: k for k, v in DTYPES.items()}
    for a, b in itertools.product(DTYPES, DTYPES):
        assert promote(a, b) == names[torch.promote_types(DTYPES[a], DTYPES[b])]
