"""Models with multi-head latent attention: one site a layer, numbers of prefill and decode."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.report import Report
from tests.e2e.families import Family
from tests.e2e.harness import (
    DTYPES,
    QUIET,
    assert_no_cache_copy,
    compilations,
    decoded,
    prefilled,
    report_of,
)

pytestmark = QUIET

LATENT = {
    "hidden_size": 88,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 28,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
}
EXPERTS = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
}
DIRECT = {"q_lora_rank": None}
MODELS = [
    Family("deepseek_v2", LATENT | EXPERTS),
    Family("deepseek_v2", LATENT | EXPERTS | DIRECT),
    Family("deepseek_v3", LATENT | EXPERTS),
    Family("deepseek_v3", LATENT | EXPERTS | DIRECT | {"rope_interleave": False}),
    Family("minicpm3", LATENT),
    Family("glm4_moe_lite", LATENT | EXPERTS),
    Family("youtu", LATENT),
    Family("kimi_linear", LATENT | EXPERTS | DIRECT | {"layer_types": ["full_attention"]}),
]
SPARSE = [
    Family(name, LATENT | EXPERTS | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4})
    for name in ("deepseek_v32", "glm_moe_dsa")
]


def _name(family: Family) -> str:
    q = "low-rank" if family.settings["q_lora_rank"] else "direct"
    return f"{family.model_type}-{q}"


EACH = pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            f, id=_name(f), marks=[] if _name(f) == "deepseek_v3-low-rank" else [pytest.mark.slow]
        )
        for f in MODELS
    ],
)


def build(family: Family, dtype: torch.dtype) -> nn.Module:
    model = family.build(dtype)
    if hasattr(model.config, "n_routed_experts"):
        cast("Any", model).set_experts_implementation("batched_mm")
    return model


def assert_one_site_a_layer(report: Report, family: Family, programs: int) -> None:
    """Attention, its norms, rotations and merged products are within the layer's one site."""
    sites = [s for s in report.sites if s.pattern == "mla"]
    assert [s.status for s in sites] == ["fused"] * programs
    for site in sites:
        assert site.details["q"].startswith("low-rank" if family.settings["q_lora_rank"] else "di")
        assert "left out" not in site.details
        swallowed = site.details["swallowed"]
        assert "merged_linear" in swallowed
        assert "rms_norm" in swallowed
    assert report.count("attention", None) == 0
    assert report.count("qk_norm", None) == 0
    assert report.count("rope", None) == 0


def projections(model: nn.Module) -> list[type[Any]]:
    """The class of each projection op of a compiled module."""
    kinds = (MlaProjection, MlaProjectionWrite)
    return [type(op) for c in compilations(model) for op in c.func.ops if isinstance(op, kinds)]


@EACH
@DTYPES
def test_prefill_of_any_batch_and_length(family: Family, dtype: torch.dtype) -> None:
    compiled = prefilled(build(family, dtype), ((2, 7), (1, 1), (3, 29)))
    programs = len(compilations(compiled))
    assert_one_site_a_layer(report_of(compiled), family, programs)
    assert projections(compiled) == [MlaProjection] * programs


@EACH
@DTYPES
def test_static_cache_decode(family: Family, dtype: torch.dtype) -> None:
    compiled = decoded(build(family, dtype), steps=6)
    assert_no_cache_copy(compiled)
    report = report_of(compiled)
    assert_one_site_a_layer(report, family, len(compilations(compiled)))
    each = dtype.itemsize
    step = [s for s in report.sites if s.pattern == "mla"][-1]
    assert step.details["rows"] == "written in place"
    assert step.details["attention"] == "absorbed"
    wanted = f"{32 * each} latent, {4 * (20 + 20) * each} expanded"
    assert step.details["cache bytes per token"] == wanted
    assert projections(compiled)[-1] is MlaProjectionWrite


@pytest.mark.slow
@pytest.mark.parametrize("family", SPARSE, ids=_name)
def test_an_indexer_acts_by_its_mask(family: Family) -> None:
    """Sparse attention: the keys it leaves out are masked, and what is masked stays masked."""
    compiled = prefilled(build(family, torch.float32), ((2, 7), (1, 29)))
    assert report_of(compiled).count("mla") == len(compilations(compiled))
