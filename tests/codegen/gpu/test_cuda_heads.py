"""Norm and rotation of heads in CUDA C++, compiled for the host: Triton's cases, and more."""

from __future__ import annotations

import pytest

from fuseline.codegen.gpu.cuda import CudaKernel
from fuseline.codegen.gpu.cuda_heads import CudaHeadsKernel, forms
from fuseline.codegen.gpu.mla_projection import MlaProjectionKernel
from fuseline.codegen.gpu.qk_norm_rope import QkNormRopeKernel
from fuseline.codegen.heads import Rotation, qk_streams
from fuseline.codegen.lower import Launch, emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen.gpu import harness
from tests.codegen.gpu.harness import binaries_of
from tests.codegen.gpu.head_models import RELEASED, qk_write
from tests.codegen.gpu.test_heads import (
    Case,
    test_head_widths,
    test_many_rows_share_larger_blocks,
    test_norm_without_rotation_and_rotation_without_norm,
    test_one_sequence_has_no_stride_of_batch,
    test_positions_outside_the_cache_are_not_written,
    test_special_values,
    test_tables_that_differ_over_the_batch,
    test_token_counts,
    test_writes_keys_and_values_into_the_cache,
)
from tests.codegen.gpu.test_merged_rows import (
    test_binaries_move_16_bytes_at_once_and_do_not_spill as test_merged_binaries,
)
from tests.codegen.gpu.test_merged_rows import test_cases as test_merged_rows
from tests.codegen.gpu.test_mla_projection import test_cases
from tests.codegen.oracle import DTYPES


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that run are in CUDA C++."""
    monkeypatch.setattr(harness, "ROAD", "cuda")


def launches(text: str) -> list[list[Launch]]:
    """For each launch all its configurations, in their order."""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    return [[launch, *launch.others] for launch in step.launches]


def in_cuda(text: str) -> list[Launch]:
    """The first configuration in CUDA C++ of each launch."""
    found = (next(n for n in each if isinstance(n.kernel, CudaKernel)) for each in launches(text))
    return list(found)


@pytest.mark.parametrize("style", ["half", "interleaved", "deinterleave"])
def test_rotated_parts(style: str) -> None:
    """The others are in the module of slow cases."""
    for i, (dtype, start) in enumerate(zip(DTYPES, (0, 16, 2), strict=True)):
        case = Case(dtype, rotated=(64, 32, 6)[i])
        order = ("rope_norm", "norm_rope", "norm_rope")[i]
        case.check(1, 3, style=style, start=start, order=order, table=("full", "half", "full")[i])


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norm_across_heads_of_a_block_and_of_a_warp(norm: str) -> None:
    """24 heads of 64 are more than a warp takes, 1 is not."""
    case = Case("bf16", heads=(24, 1), rotated=32, bias=norm == "layer")
    case.check(1, 3, scope="row", norm=norm)
    Case("f32", heads=(13, 2), width=80, cache=5).check(1, 2, scope="row", norm=norm)


def test_a_head_has_the_lanes_that_it_needs() -> None:
    for width, lanes in [(64, 4), (80, 5), (96, 6), (112, 8), (128, 8), (256, 16)]:
        (few, _) = in_cuda(qk_write((32, 8), width))
        assert isinstance(few.kernel, CudaHeadsKernel)
        assert few.kernel.lanes[:2] == (lanes, lanes), width
        assert few.kernel.is_wide
        assert few.kernel.warps == 1


def test_first_where_tiles_of_triton_are_padded() -> None:
    for width in (80, 96):
        for each in launches(qk_write((32, 8), width)):
            assert isinstance(each[0].kernel, CudaHeadsKernel), width
    equal = qk_write((32, 8), 112)  # an eighth of the lanes is idle in both
    for text in (RELEASED["Qwen3-8B"], RELEASED["Gemma3-12B"], RELEASED["OLMo2-7B"], equal):
        for each in launches(text):
            assert isinstance(each[0].kernel, QkNormRopeKernel)
            assert any(isinstance(n.kernel, CudaHeadsKernel) for n in each)
    askew, arguments = Case("bf16", width=80).made(1, 1, {})  # begins at element 4 of a row
    assert arguments
    assert isinstance(launches(askew)[0][0].kernel, QkNormRopeKernel)
    for each in launches(RELEASED["DeepSeek-V3"]):  # 1536 of 2048
        assert isinstance(each[0].kernel, CudaHeadsKernel)
        assert isinstance(each[-1].kernel, MlaProjectionKernel)


@pytest.mark.parametrize(
    ("width", "rotation", "reason"),
    [
        (64, Rotation(6, style="interleaved", start=1), "pairs side by side from element 1 of 64"),
        (40000, Rotation(64), "4992 accesses of a row"),
    ],
)
def test_no_form(width: int, rotation: Rotation, reason: str) -> None:
    """Then Triton's kernel remains."""
    plain = QkNormRopeKernel("bf16", qk_streams((2, 1), width), rotation)
    with pytest.raises(ValueError, match=reason):
        forms(plain, warps=1)


FAST = ("heads of 80", "DeepSeek-V3")
"""The others take as long again, and show the same."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=[] if m in FAST else pytest.mark.slow) for m in RELEASED],
)
def test_binaries_move_16_bytes_at_once_and_do_not_spill(name: str, binary_cache: Cache) -> None:
    for target, made in binaries_of(in_cuda(RELEASED[name])[1:], binary_cache):
        resources, kernel = made.binary.resources, made.launch.kernel
        assert isinstance(kernel, CudaHeadsKernel)
        assert resources["widest_load"] == 128, target.name
        assert resources["narrowest_load"] == (64 if kernel.cached else 128), target.name
        assert resources["narrowest_store"] == 128, target.name
        assert made.resident >= 0.3, target.name


__all__ = [
    "test_cases",
    "test_head_widths",
    "test_many_rows_share_larger_blocks",
    "test_merged_binaries",
    "test_merged_rows",
    "test_norm_without_rotation_and_rotation_without_norm",
    "test_one_sequence_has_no_stride_of_batch",
    "test_positions_outside_the_cache_are_not_written",
    "test_special_values",
    "test_tables_that_differ_over_the_batch",
    "test_token_counts",
    "test_writes_keys_and_values_into_the_cache",
]
