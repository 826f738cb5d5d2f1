"""Random cases of every op that the element-wise kernel does: any shape, symbols, element types."""

from __future__ import annotations

import pytest

from fuseline.codegen import lowerings
from fuseline.codegen.cpu import lower_pointwise
from fuseline.codegen.lower import LOWERINGS
from tests.codegen.cpu.region_harness import native
from tests.codegen.random_cases import check_op

assert lowerings.__all__, "importing them registers them"
OURS = sorted(
    cls.name
    for cls, function in LOWERINGS["cpu"].items()
    if getattr(function, "__module__", "") == lower_pointwise.__name__
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_kernel_gives_what_the_reference_gives(name: str) -> None:
    check_op(name, native(2), "cpu", examples=8, workers=2)
