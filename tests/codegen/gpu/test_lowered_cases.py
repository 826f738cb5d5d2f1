"""Random cases of every op that is done by region, index or selection in Triton."""

from __future__ import annotations

import pytest

from fuseline.codegen import lowerings
from fuseline.codegen.gpu import lower_index, lower_pointwise, lower_select
from fuseline.codegen.lower import LOWERINGS
from tests.codegen.gpu.harness import interpreted
from tests.codegen.random_cases import check_op

assert lowerings.__all__, "importing them registers them"
MODULES = {m.__name__ for m in (lower_index, lower_pointwise, lower_select)}
ELSEWHERE = {"argmax", "topk"}
"""Of few dtypes and one axis, or free in which of equal elements they take: see their own tests."""

OURS = sorted(
    cls.name
    for cls, function in LOWERINGS["cuda"].items()
    if getattr(function, "__module__", "") in MODULES and cls.name not in ELSEWHERE
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_kernel_gives_what_the_reference_gives(name: str) -> None:
    check_op(name, interpreted, "cuda", examples=6)
