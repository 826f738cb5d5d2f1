"""Ops that the element-wise kernel does, from a func in text form to numbers."""

from __future__ import annotations

import pytest

from fuseline.codegen.lower import emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cases import Make, check_cases
from tests.codegen.cpu.region_harness import check_func
from tests.codegen.func_cases import FUNCS


@pytest.mark.parametrize("case", FUNCS)
def test_cases(case: Make) -> None:
    check_cases(case, check_func)


def test_what_no_kernel_does_says_why() -> None:
    func = parse_func("func @f(%x: i64[5], %z: i64[5]) {\n %y = remainder %x, %z\n return %y\n }")
    (step,) = emit(func, LayoutMap(func))
    assert step.refusal == "remainder by an integer that may be 0, where torch raises"
