"""Products with weights that lie [K, N] against the float64 oracle, at odd sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fuseline.codegen import lowerings
from fuseline.codegen.cpu.linear import LinearColumnsKernel, LinearLargeKernel
from fuseline.codegen.cpu.linear_choice import choose_linear
from tests.codegen.cpu.harness import build
from tests.codegen.cpu.linear_cases import DTYPES, MOST_DTYPES, Case, check, run
from tests.codegen.cpu.test_lower_rows import check as check_func
from tests.codegen.oracle import seeded

assert lowerings.__all__, "importing them registers them"

SIZES = [
    (64, (48,)),
    (37, (5,)),
    (1, (1,)),
    (1000, (1033,)),
    (521, (7,)),
    (15, (131,)),
    (258, (530,)),
]
EPILOGUES = [
    pytest.param({"bias": True}, id="bias"),
    pytest.param({"residual": True}, id="residual"),
    pytest.param({"bias": True, "activation": "gelu_tanh", "residual": True}, id="all"),
]


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("dtype", MOST_DTYPES)
@pytest.mark.parametrize(("k", "outputs"), SIZES)
def test_few_tokens(k: int, outputs: tuple[int, ...], dtype: str, far: bool) -> None:
    kernel = LinearColumnsKernel(k, outputs, dtype, far=far, streams=6 if far else 4)
    built = build(kernel)
    for tokens in (0, 1, 2, 3, 5, 8, 13, 16):
        case = Case.make(kernel, tokens)
        y = run(kernel, case, built=built)
        check(kernel, case, y)
        for nth in (2, 3):
            assert torch.equal(run(kernel, case, built=built, nth=nth), y)


@pytest.mark.parametrize("dtype", MOST_DTYPES)
@pytest.mark.parametrize(("k", "outputs"), [(37, (5,)), (1000, (133,)), (64, (96,))])
def test_many_tokens(k: int, outputs: tuple[int, ...], dtype: str) -> None:
    library = 17 if dtype == "f32" else 0
    kernel = LinearLargeKernel(k, outputs, dtype, columns=True, library_tokens=library)
    built = build(kernel)
    for tokens in (0, 1, 17, 64, 131):
        case = Case.make(kernel, tokens)
        for sgemm in (True, False):
            y = run(kernel, case, built=built, sgemm=sgemm)
            check(kernel, case, y)
            check(kernel, case, run(kernel, case, built=built, nth=3, sgemm=sgemm))


@pytest.mark.parametrize("dtype", MOST_DTYPES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue: dict[str, Any], dtype: str) -> None:
    choices = choose_linear(k=100, outputs=(43,), dtype=dtype, columns=True, **epilogue)
    for first, _, kernel in choices:
        case = Case.make(kernel, first)
        y = run(kernel, case)
        check(kernel, case, y)
        check(kernel, case, run(kernel, case, nth=3))


def test_every_number_of_tokens_has_one_kernel() -> None:
    for dtype in DTYPES:
        choices = choose_linear(k=100, outputs=(43,), dtype=dtype, columns=True)
        assert all(kernel.columns for _, _, kernel in choices)
        ends = [0, *(last for _, last, _ in choices)]
        assert [first for first, _, _ in choices] == [e + 1 for e in ends[:-1] if e is not None]
        assert ends[-1] is None


def test_no_gated_product() -> None:
    with pytest.raises(ValueError, match=r"no gated product of weights that lie \[K, N\]"):
        LinearColumnsKernel(8, (4,), "f32", gated=True, activation="silu")
    with pytest.raises(ValueError, match=r"the weights lie \[K, N\]"):
        LinearColumnsKernel(8, (4,), "f32", columns=False)


def test_a_transposed_weight_is_read_as_it_lies() -> None:
    text = """func @f(%x: f32[S, 30], %w: f32[30, 19], %b: f32[19], %r: f32[S, 19]) {
      %t = permute %w {dims = (1, 0)}
      %y = linear_add %x, %t, %r, %b
      return %y
    }"""
    for tokens in (1, 5, 40):
        shapes = ((tokens, 30), (30, 19), (19,), (tokens, 19))
        given = [seeded(*s, dtype=torch.float32, seed=n) for n, s in enumerate(shapes)]
        check_func(text, given, ops=["linear_add"])
