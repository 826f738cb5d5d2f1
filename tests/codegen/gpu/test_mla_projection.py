"""mla_projection in Triton: strided rows in, results or caches out."""

from __future__ import annotations

import pytest

from fuseline.codegen.lower import Refusal, lower
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cases import Make, check_numbers
from tests.codegen.gpu.harness import check
from tests.codegen.mla_cases import REFUSED, ROPES, ROWS, SIZES, all_rows
from tests.codegen.oracle import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_at_odd_sizes(dtype: str) -> None:
    for style in ROPES:
        for sizes in SIZES:
            case = all_rows(dtype, style, sizes)
            check(case.text, case.tensors, ops=["mla_projection"])


@pytest.mark.parametrize("case", ROWS)
def test_cases(case: Make) -> None:
    check_numbers(case, check)


@pytest.mark.parametrize("name", REFUSED)
def test_no_kernel_for_what_it_cannot_do(name: str) -> None:
    op, arguments, reason = REFUSED[name]
    func = parse_func(f"func @f({arguments}) {{ %y = {op}  return %y }}")
    found = lower(func.ops[0], LayoutMap(func), "cuda")
    assert isinstance(found, Refusal)
    assert reason in found.reason
