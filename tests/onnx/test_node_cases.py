"""ONNX's own node cases: a sample always, all of them in the long run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from tests.onnx import node_backend

SAMPLE = (
    "abs", "add_bcast", "argmax_default_axis_example", "attention_4d_gqa", "attention_3d_causal",
    "attention_4d_with_past_and_present", "averagepool_2d_ceil", "batchnorm_example",
    "cast_FLOAT_to_FLOAT16", "clip_example", "concat_3d_axis_1", "constantofshape_float_ones",
    "basic_conv_with_padding", "convtranspose_pads", "cumsum_1d_exclusive", "depthtospace_example",
    "div", "einsum_batch_matmul", "elu", "equal", "expand_dim_changed", "flatten_axis1",
    "gather_0", "gather_elements_1", "gathernd_example_float32", "gelu_tanh_1",
    "gemm_all_attributes", "group_normalization_example", "gru_defaults", "instancenorm_example",
    "layer_normalization_4d_axis1", "leakyrelu", "logsoftmax_axis_1", "lstm_with_peepholes",
    "matmul_3d", "maxpool_2d_dilations", "mean_example", "mod_mixed_sign_int64", "mvn",
    "onehot_with_axis", "pow_bcast_array", "qlinearmatmul_2D_uint8_float32", "quantizelinear_axis",
    "range_float_type_positive_delta", "reduce_l2_keep_dims_example", "reduce_max_empty_set",
    "reshape_negative_dim", "resize_upsample_scales_linear", "rms_normalization_2d_axis1",
    "rotary_embedding_interleaved", "sce_mean", "scatter_elements_with_negative_indices",
    "scatternd_add", "slice_neg_steps", "softmax_axis_1", "split_equal_parts_1d_opset18",
    "squeeze", "swish", "tensorscatter_circular", "tile", "top_k", "transpose_all_permutations_3",
    "tril", "where_example",
)  # fmt: skip
COMPILED = (
    "add_bcast", "attention_4d_gqa", "basic_conv_with_padding", "gelu_tanh_1", "onehot_with_axis",
    "reduce_max_empty_set", "rms_normalization_2d_axis1", "softmax_axis_1",
)  # fmt: skip


@cache
def cases() -> Mapping[str, Any]:
    return node_backend.load()


@pytest.mark.parametrize("name", SAMPLE)
def test_sample_by_the_references(name: str) -> None:
    assert not node_backend.run(cases()[f"test_{name}"], compiled=False)


@pytest.mark.parametrize("name", COMPILED)
def test_sample_compiled(name: str) -> None:
    assert not node_backend.run(cases()[f"test_{name}"], compiled=True)


def test_known_failures_are_cases() -> None:
    listed = node_backend.listed()
    assert set(listed) <= set(cases())
    assert {where for where, _ in listed.values()} <= {"import", "cpu", "reference"}
    assert all(why for _, why in listed.values())


def hold_to_the_list(found: Mapping[str, str], places: set[str]) -> None:
    """Nothing fails that is not listed, and what is listed fails."""
    known = {name for name, (where, _) in node_backend.listed().items() if where in places}
    failed = {name: why for name, why in found.items() if why}
    assert {n: w for n, w in failed.items() if n not in known} == {}
    assert sorted(known - set(failed)) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_by_the_references() -> None:
    found = node_backend.run_all(compiled=False)
    hold_to_the_list(found, {"import", "reference"})
    assert sum(not why for why in found.values()) >= 1200


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_all_compiled() -> None:
    found = node_backend.run_all(compiled=True)
    hold_to_the_list(found, {"import", "cpu"})
    assert sum(not why for why in found.values()) >= 1200
