"""Products of many tokens against the float64 oracle, at odd sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuseline.codegen.cpu.linear import LinearLargeKernel
from tests.codegen.cpu.harness import build, sgemm_address, vectors
from tests.codegen.cpu.linear_cases import DTYPES, MOST_DTYPES, Case, check, run

SIZES = [(64, (48,)), (37, (5, 3)), (1, (1,)), (1000, (33, 17, 40)), (521, (7,)), (15, (131,))]


def small_blocks(k: int, outputs: tuple[int, ...], dtype: str, **more: Any) -> LinearLargeKernel:
    """Blocks small enough that these sizes fill several of them."""
    blocks: dict[str, Any] = {
        "k_block": 256,
        "strip": 12,
        "token_block": 40,
        "prefetch": 1,
        **more,
    }
    return LinearLargeKernel(k, outputs, dtype, **blocks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "outputs"), SIZES)
def test_any_shape(k: int, outputs: tuple[int, ...], dtype: str) -> None:
    kernel = small_blocks(k, outputs, dtype)
    built = build(kernel)
    for tokens in (0, 1, 2, 3, 5, 8, 16, 17, 33, 128, 161):
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        check(kernel, case, y)
        for nth in (2, 3, 4):
            assert torch.equal(run(kernel, case, built=built, nth=nth), y)


EPILOGUES = [
    pytest.param({"bias": True}, id="bias"),
    pytest.param({"residual": True}, id="residual"),
    pytest.param({"bias": True, "activation": "gelu_tanh", "residual": True}, id="all"),
    pytest.param({"gated": True, "activation": "silu"}, id="gated"),
    pytest.param({"gated": True, "activation": "gelu_erf", "bias": True}, id="gated-bias"),
    pytest.param({"gated": True, "activation": "relu2", "residual": True}, id="gated-residual"),
    pytest.param({"out_dtype": "f32"}, id="widened"),
]


@pytest.mark.parametrize("dtype", MOST_DTYPES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue: dict[str, Any], dtype: str) -> None:
    kernel = small_blocks(100, (43,), dtype, min_tokens=16, **epilogue)
    built = build(kernel)
    for tokens in (16, 41, 90):
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        check(kernel, case, y)
        assert torch.equal(run(kernel, case, built=built, nth=3), y)


@pytest.mark.skipif(not sgemm_address(), reason="libtorch_cpu has no sgemm here")
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_the_library_does_many_tokens(epilogue: dict[str, Any]) -> None:
    """In the same kernel, which does without it where there is none."""
    kernel = small_blocks(100, (531,), "f32", min_tokens=16, library_tokens=32, **epilogue)
    built = build(kernel)
    for tokens in (31, 32, 600):
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        check(kernel, case, y)
        check(kernel, case, run(kernel, case, built=built, nth=3))
        ours = run(kernel, case, built=built, sgemm=False)
        check(kernel, case, ours)
        assert torch.equal(ours, y) == (tokens < 32)


@pytest.mark.skipif(not sgemm_address(), reason="libtorch_cpu has no sgemm here")
def test_the_library_writes_several_results() -> None:
    kernel = small_blocks(60, (250, 3, 17), "f32", library_tokens=1)
    built = build(kernel)
    for tokens in (1, 5, 70):
        case = Case.make(kernel, tokens)
        check(kernel, case, run(kernel, case, built=built, nth=2))


def test_min_tokens_bounds_the_panels() -> None:
    """Fewer panel sizes build faster; a part of the tokens is never too small for them."""
    kernel = small_blocks(50, (9,), "f32", min_tokens=16, token_block=10)
    assert kernel.panel_sizes == (2, 3, 4, 5)  # of either tile
    assert small_blocks(50, (9,), "f32", min_tokens=17).panel_sizes == (3, 4, 5)
    built = build(kernel)
    for tokens in range(16, 70):
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        check(kernel, case, y)
        assert torch.equal(run(kernel, case, built=built, nth=4), y)


def test_workers_run_at_once() -> None:
    kernel = small_blocks(300, (200, 9), "bf16")
    case = Case.make(kernel, 50)
    assert torch.equal(run(kernel, case, nth=4, threads=True), run(kernel, case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row_and_column(dtype: str) -> None:
    kernel = small_blocks(45, (19,), dtype)
    case = Case.make(kernel, 30)
    case.x[22, 44] = float("nan")
    case.w[7, 3] = float("inf")
    y = run(kernel, case)
    assert y[22].isnan().all()
    assert y[:22, 7].isinf().all()
    others = torch.ones_like(y, dtype=torch.bool)
    others[22], others[:, 7] = False, False
    assert y[others].isfinite().all()


def test_wrong_contexts_are_refused() -> None:
    with pytest.raises(ValueError, match="strip 32 is not a multiple of 3 rows"):
        LinearLargeKernel(8, (8,), "f32", strip=32)
    with pytest.raises(ValueError, match="strip 9 is not a multiple of 4 rows"):
        LinearLargeKernel(8, (8,), "f32", strip=9)
    with pytest.raises(ValueError, match="float32"):
        LinearLargeKernel(8, (8,), "bf16", library_tokens=1)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_any_vector_width(lanes: int) -> None:
    """Blocks of K may hold an odd number of chunks, with none left over at the end, or some."""
    for dtype in DTYPES:
        for k, tokens in ((17 * 64, 33), (301, 90)):
            kernel = small_blocks(k, (20,), dtype, k_block=17 * 32, min_tokens=16)
            case = Case.make(kernel, tokens)
            for flags in vectors(lanes, dtype):
                check(kernel, case, run(kernel, case, built=build(kernel, flags)))


@pytest.mark.skipif(not sgemm_address(), reason="libtorch_cpu has no sgemm here")
def test_rows_that_repeat_are_not_left_to_the_library() -> None:
    """Its rows must lie apart; those of an expanded tensor are one and the same."""
    kernel = small_blocks(60, (31,), "f32", library_tokens=1)
    case = Case.make(kernel, 50)
    repeated = replace(case, x=case.x[:1].expand(50, 60))
    assert repeated.x.stride(0) == 0
    check(kernel, repeated, run(kernel, repeated))
