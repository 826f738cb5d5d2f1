"""The families that fuseline is held to: numbers, the sites that each must have, and its cache."""

from __future__ import annotations

import pytest
import torch

from fuseline.report import Report
from tests.e2e.families import FAMILIES, Family
from tests.e2e.harness import (
    DTYPES,
    QUIET,
    assert_no_cache_copy,
    compilations,
    decoded,
    prefilled,
    report_of,
)

STEPS = 20
TELLING = ("qwen3", "olmo2", "gemma3_text", "qwen3_moe")
"""Norms by head and across heads, windows, experts; the others are slow."""
EACH = pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=() if f.model_type in TELLING else pytest.mark.slow, id=f.model_type)
        for f in FAMILIES
    ],
)
pytestmark = QUIET


def assert_explained(report: Report, family: Family, programs: int) -> None:
    """Every site of the fusions that this family must have is fused, or missed with a reason."""
    layers = 2 * programs
    assert all(site.reason for site in report.sites if site.status == "missed")
    if family.qk_norm:
        assert report.count("qk_norm", None) == layers
        assert report.count("qk_norm") == layers
    else:
        assert report.count("qk_norm", None) == 0
    assert report.count("attention") == layers
    assert report.count("merged_linear") + report.count("gated_mlp") >= layers


@EACH
@DTYPES
def test_prefill_of_any_batch_and_length(family: Family, dtype: torch.dtype) -> None:
    compiled = prefilled(family.build(dtype), ((2, 7), (3, 13), (1, 1), (1, 29)))
    assert_explained(report_of(compiled), family, len(compilations(compiled)))


@EACH
@DTYPES
def test_static_cache_decode(family: Family, dtype: torch.dtype) -> None:
    compiled = decoded(family.build(dtype), STEPS)
    assert_no_cache_copy(compiled)
    assert_explained(report_of(compiled), family, len(compilations(compiled)))
