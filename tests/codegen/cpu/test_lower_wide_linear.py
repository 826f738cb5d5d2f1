"""Products of narrow operands in float32: launches against the float64 oracle, at odd sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fuseline.codegen.lower import emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cpu.linear_cases import DTYPES
from tests.codegen.cpu.test_lower_rows import run
from tests.codegen.oracle import seeded

CASES = [
    ("bf16", "bf16", 113, 31),
    ("bf16", "f32", 80, 6),
    ("f32", "bf16", 521, 7),
    pytest.param("bf16", "bf16", 1, 1, marks=pytest.mark.slow),
    pytest.param("f16", "f16", 113, 31, marks=pytest.mark.slow),
    pytest.param("f16", "bf16", 96, 13, marks=pytest.mark.slow),
]


def check(text: str, x: torch.Tensor, *parameters: torch.Tensor, nth: int) -> None:
    """The result is float32's: its error is far below the rounding of the operands."""
    func = parse_func(text)
    machine = run(func, [x, *parameters], nth)
    weight, *bias = parameters
    source = x[:, 3:] if x.shape[-1] != weight.shape[1] else x
    want = F.linear(source.double(), weight.double(), *(b.double() for b in bias))
    got = machine.tensor(func.returns[0])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1.3e-6)


@pytest.mark.parametrize(("x_dtype", "w_dtype", "k", "n"), CASES)
def test_any_types(x_dtype: str, w_dtype: str, k: int, n: int) -> None:
    text = f"""func @f(%x: {x_dtype}[T, {k}], %w: {w_dtype}[{n}, {k}]) {{
      %y = wide_linear %x, %w
      return %y
    }}"""
    weight = seeded(n, k, dtype=torch.float32, seed=1).mul(k**-0.5).to(DTYPES[w_dtype])
    for tokens in (0, 1, 2, 7, 67):
        x = seeded(tokens, k, dtype=DTYPES[x_dtype], seed=2)
        for nth in (1, 3):
            check(text, x, weight, nth=nth)


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("f16", marks=pytest.mark.slow)])
def test_rows_with_gaps_and_a_bias(dtype: str) -> None:
    text = f"""func @f(%x: {dtype}[T, 40], %w: {dtype}[11, 37], %b: {dtype}[11]) {{
      %part = slice %x {{axis = 1, start = 3, stop = 40}}
      %y = wide_linear %part, %w, %b
      return %y
    }}"""
    kind = DTYPES[dtype]
    weight = seeded(11, 37, dtype=torch.float32, seed=1).mul(0.2).to(kind)
    for tokens in (1, 5, 70):
        x = seeded(tokens, 40, dtype=kind, seed=2)
        check(text, x, weight, seeded(11, dtype=kind, seed=3), nth=2)


def test_no_kernel_for_an_unknown_number_of_experts() -> None:
    text = """func @f(%x: bf16[T, 8], %w: bf16[E, 8]) {
      %y = wide_linear %x, %w
      return %y
    }"""
    (step,) = emit((func := parse_func(text)), LayoutMap(func))
    assert "the kernel needs known widths" in step.refusal
