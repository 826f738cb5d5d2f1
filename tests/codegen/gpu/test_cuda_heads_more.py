"""The cases of heads that take longest, in CUDA C++, compiled for the host."""

from __future__ import annotations

import pytest

from tests.codegen.gpu import harness
from tests.codegen.gpu.test_heads import (
    test_bf16_rounds_where_eager_rounds,
    test_norm_across_heads_of_unequal_number,
    test_norms,
    test_rotations,
    test_tables_of_another_dtype,
)
from tests.codegen.gpu.test_mla_projection import test_all_rows_at_odd_sizes

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that run are in CUDA C++."""
    monkeypatch.setattr(harness, "ROAD", "cuda")


__all__ = [
    "test_all_rows_at_odd_sizes",
    "test_bf16_rounds_where_eager_rounds",
    "test_norm_across_heads_of_unequal_number",
    "test_norms",
    "test_rotations",
    "test_tables_of_another_dtype",
]
