"""Norm and rotation of heads in CUDA C++, compiled for the host: the cases of Triton's, and more."""

from __future__ import annotations

import pytest

from tests.codegen.gpu import harness
from tests.codegen.gpu.test_heads import (
    test_bf16_rounds_where_eager_rounds,
    test_head_widths,
    test_many_rows_share_larger_blocks,
    test_norm_across_heads_of_unequal_number,
    test_norm_without_rotation_and_rotation_without_norm,
    test_norms,
    test_one_sequence_has_no_stride_of_batch,
    test_positions_outside_the_cache_are_not_written,
    test_rope_before_and_after_the_transpose,
    test_rope_by_tables_of_fewer_dims,
    test_rotations,
    test_special_values,
    test_tables_of_another_dtype,
    test_tables_that_differ_over_the_batch,
    test_token_counts,
    test_writes_keys_and_values_into_the_cache,
)


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that run are in CUDA C++."""
    monkeypatch.setattr(harness, "ROAD", "cuda")
