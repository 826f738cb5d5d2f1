"""merged_rows on a CPU: each row by the kernel that it has alone."""

from __future__ import annotations

import pytest

from fuseline.codegen.lower import Refusal, emit, lower
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cases import Make, check_numbers
from tests.codegen.cpu.test_lower_rows import check
from tests.codegen.merged_cases import MERGED, merged


@pytest.mark.parametrize("case", MERGED)
def test_cases(case: Make) -> None:
    check_numbers(case, check)


def test_the_launches_are_those_of_the_ops_apart() -> None:
    """The same kernels, so that nothing is slower than without the op."""
    both = parse_func(merged("bf16", (48, 20), tokens=3, rotated=8).text)
    apart = parse_func("""func @f(%a: bf16[B, S, 48], %b: bf16[B, S, 20], %k: bf16[B, 1, S, 8],
        %u: bf16[48], %w: bf16[20], %c: bf16[1, 1, S, 8], %s: bf16[1, 1, S, 8]) {
      %x = rms_norm %a, %u
      %y = rms_norm %b, %w
      %z = rope %k, %c, %s {width = 8}
      return %x, %y, %z
    }""")
    found = [
        [launch.kernel for step in emit(func, LayoutMap(func)) for launch in step.launches]
        for func in (both, apart)
    ]
    assert found[0] == found[1]
    assert [kernel.family for kernel in found[0]] == ["row_norm", "row_norm", "rope"]


def test_no_kernel_for_what_it_cannot_do() -> None:
    func = parse_func("""func @f(%x: f32[B, S, L]) {
      %y, %z = merged_rows [%x, %x], [], []
      return %y, %z
    }""")
    found = lower(func.ops[0], LayoutMap(func))
    assert isinstance(found, Refusal)
    assert "unknown width: f32[B, S, L]" in found.reason
