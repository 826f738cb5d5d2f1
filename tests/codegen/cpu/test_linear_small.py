"""Products of few tokens against the float64 oracle, at odd sizes."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseline.codegen.cpu.linear import Activation, LinearSmallKernel
from tests.codegen.cpu.harness import build, vectors
from tests.codegen.cpu.linear_cases import ACTIVATIONS, DTYPES, MOST_DTYPES, Case, check, run

TOKENS = (0, 1, 2, 3, 5, 8, 16, 17, 33)
SIZES = [(64, (48,)), (37, (5, 3)), (1, (1,)), (1000, (33, 17, 40)), (521, (7,)), (15, (131,))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "outputs"), SIZES)
def test_any_shape(k: int, outputs: tuple[int, ...], dtype: str) -> None:
    kernel = LinearSmallKernel(k, outputs, dtype, prefetch=256, k_block=256)
    built = build(kernel)
    for tokens in TOKENS:
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        check(kernel, case, y)
        for nth in (2, 3):
            assert torch.equal(run(kernel, case, built=built, nth=nth), y)


EPILOGUES = [
    pytest.param({"bias": True}, id="bias"),
    pytest.param({"residual": True}, id="residual"),
    pytest.param({"bias": True, "activation": "gelu_tanh", "residual": True}, id="all"),
    pytest.param({"gated": True, "activation": "silu"}, id="gated"),
    pytest.param({"gated": True, "activation": "gelu_erf", "bias": True}, id="gated-bias"),
    pytest.param({"gated": True, "activation": "relu2", "residual": True}, id="gated-residual"),
]


@pytest.mark.parametrize("dtype", MOST_DTYPES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue: dict[str, Any], dtype: str) -> None:
    kernel = LinearSmallKernel(100, (43,), dtype, **epilogue)
    built = build(kernel)
    for tokens in (1, 5, 8):
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        check(kernel, case, y)
        assert torch.equal(run(kernel, case, built=built, nth=3), y)


@pytest.mark.parametrize("rows", [2, 6])
def test_gate_and_up_are_read_at_once(rows: int) -> None:
    """With an even number of rows; columns fewer than streams and not a multiple of them."""
    for columns in (1, 5, 101):
        kernel = LinearSmallKernel(
            60, (columns,), "bf16", rows=rows, tokens=1, gated=True, activation="silu", bias=True
        )
        built = build(kernel)
        for tokens in (1, 3):
            case = Case.make(kernel, tokens)
            y = run(kernel, case, built=built)
            check(kernel, case, y)
            assert torch.equal(run(kernel, case, built=built, nth=3), y)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: Activation) -> None:
    kernel = LinearSmallKernel(24, (21,), "f32", activation=activation)
    case = Case.make(kernel, 3)
    check(kernel, case, run(kernel, case))


@pytest.mark.parametrize(
    ("dtype", "x_dtype", "weight_dtype", "out_dtype"),
    [
        ("bf16", "bf16", "bf16", "f32"),  # logits.float()
        ("f16", "f16", "f16", "f32"),
        ("f32", "bf16", "f32", "f32"),  # a float32 router
        ("f32", "bf16", "bf16", "f32"),
        ("f32", "f32", "bf16", "f32"),
        ("f32", "f16", "f32", "bf16"),
    ],
)
def test_mixed_types(dtype: str, x_dtype: str, weight_dtype: str, out_dtype: str) -> None:
    kernel = LinearSmallKernel(77, (30,), dtype, x_dtype, weight_dtype, out_dtype)
    built = build(kernel)
    for tokens in (1, 4):
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        assert y.dtype == DTYPES[out_dtype]
        check(kernel, case, y)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (6, 1), (5, 2), (4, 3), (2, 6)])
@pytest.mark.parametrize("dtype", MOST_DTYPES)
def test_every_register_tile(dtype: str, rows: int, tokens: int) -> None:
    kernel = LinearSmallKernel(333, (50,), dtype, rows=rows, tokens=tokens)
    built = build(kernel)
    for count in (1, tokens, 2 * tokens + 1):
        case = Case.make(kernel, count)
        check(kernel, case, run(kernel, case, built=built))


def test_results_do_not_depend_on_the_blocks_of_k() -> None:
    """Accumulators wait between blocks: nothing is rounded or added in another order."""
    kernels = [LinearSmallKernel(1000, (20,), "f32", k_block=b) for b in (64, 256, 1024)]
    case = Case.make(kernels[0], 9)
    first, *others = [run(kernel, case) for kernel in kernels]
    assert all(torch.equal(first, other) for other in others)


def test_a_token_does_not_depend_on_the_others() -> None:
    kernel = LinearSmallKernel(200, (20,), "bf16")
    case = Case.make(kernel, 7)
    alone = Case(case.x[4:5], case.w, None, None)
    assert torch.equal(run(kernel, case)[4:5], run(kernel, alone))


def test_workers_run_at_once() -> None:
    kernel = LinearSmallKernel(300, (200, 9), "bf16")
    case = Case.make(kernel, 5)
    assert torch.equal(run(kernel, case, nth=3, threads=True), run(kernel, case))


def test_residual_may_be_the_result() -> None:
    kernel = LinearSmallKernel(65, (40,), "bf16", residual=True)
    case = Case.make(kernel, 3)
    want = run(kernel, case)
    y = Case.make(kernel, 3).residual
    assert y is not None
    size = kernel.scratch_bytes(3, 1)
    assert isinstance(size, int)
    strides = [case.x.stride(0), y.stride(0), y.stride(0)]
    build(kernel)([case.x, case.w, y, y, torch.empty(size // 4)], [3, *strides])
    assert torch.equal(y, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row_and_column(dtype: str) -> None:
    kernel = LinearSmallKernel(45, (19,), dtype)
    case = Case.make(kernel, 6)
    case.x[2, 44] = float("nan")
    case.w[7, 3] = float("inf")
    y = run(kernel, case)
    assert y[2].isnan().all()
    assert (y[:2, 7].isinf() & (y[:2, 7].sign() == case.x[:2, 3].sign())).all()
    others = torch.ones_like(y, dtype=torch.bool)
    others[2], others[:, 7] = False, False
    assert y[others].isfinite().all()


def test_wrong_contexts_are_refused() -> None:
    with pytest.raises(ValueError, match="no linear kernel for f64"):
        LinearSmallKernel(8, (8,), "f64")
    with pytest.raises(ValueError, match="K = 0"):
        LinearSmallKernel(0, (8,), "f32")
    with pytest.raises(ValueError, match="one output and an activation"):
        LinearSmallKernel(8, (8, 8), "f32", gated=True, activation="silu")
    with pytest.raises(ValueError, match="k_block 100"):
        LinearSmallKernel(8, (8,), "f32", k_block=100)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_any_vector_width(lanes: int) -> None:
    """Whatever the machine's own is; wider ones are two registers to the compiler."""
    for dtype in DTYPES:
        kernel = LinearSmallKernel(150, (20,), dtype, bias=True)
        case = Case.make(kernel, 5)
        for flags in vectors(lanes, dtype):
            check(kernel, case, run(kernel, case, built=build(kernel, flags)))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize(
    ("march", "feature"), [("x86-64", "sse2"), ("x86-64-v3", "avx2"), ("x86-64-v4", "avx512f")]
)
def test_compiles_for_other_machines(march: str, feature: str) -> None:
    """And is right there, where this is one of them."""
    for dtype in DTYPES:
        kernel = LinearSmallKernel(100, (20,), dtype, bias=True)
        built = build(kernel, [f"-march={march}"])
        if feature in Path("/proc/cpuinfo").read_text():
            case = Case.make(kernel, 5)
            check(kernel, case, run(kernel, case, built=built))
