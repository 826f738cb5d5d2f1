"""Mixtures of experts in whole models: the numbers rule, and every block found and explained."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from tests.e2e.families import Family
from tests.e2e.harness import DTYPES, QUIET, compilations, decoded, prefilled, report_of

SIZES: dict[str, Any] = {
    "hidden_size": 88,  # torch's grouped product takes rows of a multiple of 16 bytes only
    "head_dim": 20,
    "num_experts": 5,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
}
DEEPSEEK = {
    "hidden_size": 120,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 10,
    "qk_nope_head_dim": 14,
    "v_head_dim": 18,
    "first_k_dense_replace": 0,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_shared_experts": 1,
    "n_group": 3,
    "topk_group": 2,
}


def family(kind: str, name: Any = "", **settings: Any) -> Any:
    """A case of `FAMILIES`; only one of them is not slow."""
    marks = () if name == "groups" else (pytest.mark.slow,)
    return pytest.param(Family(kind, settings), id=f"{kind}-{name}".rstrip("-"), marks=marks)


FAMILIES = [
    family("mixtral", **SIZES | {"intermediate_size": 40}),
    family("qwen2_moe", **SIZES, shared_expert_intermediate_size=56),
    family("qwen3_moe", **SIZES, norm_topk_prob=True),
    family("deepseek_v2", "greedy", **DEEPSEEK, q_lora_rank=None, topk_method="greedy"),
    family(
        *("deepseek_v2", "grouped"),
        **DEEPSEEK,
        q_lora_rank=28,
        topk_method="group_limited_greedy",
        routed_scaling_factor=1.7,
    ),
    family("deepseek_v3", "groups", **DEEPSEEK, q_lora_rank=28),
    family("minimax_m2", **SIZES | {"intermediate_size": 40}, rotary_dim=8),
    family("glm4_moe", **SIZES, n_routed_experts=5, n_shared_experts=1, first_k_dense_replace=0),
    family("gpt_oss", **SIZES | {"intermediate_size": 40}, sliding_window=8),
    family("granitemoeshared", **SIZES | {"intermediate_size": 40}, shared_intermediate_size=56),
    family(
        "llama4_text",
        **SIZES | {"intermediate_size": 40},
        intermediate_size_mlp=56,
        interleave_moe_layer_step=1,
        attention_chunk_size=16,
    ),
    family(
        "nemotron_h",
        hidden_size=88,
        head_dim=20,
        layers_block_type=["attention", "moe"],
        n_routed_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=40,
        moe_shared_expert_intermediate_size=56,
        moe_latent_size=32,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
    ),
]
EACH = pytest.mark.parametrize("family", FAMILIES)
STEPS = 6
SHARED = (
    *("qwen2_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "granitemoeshared", "llama4_text"),
    "nemotron_h",
)
pytestmark = QUIET


def assert_explained(model: nn.Module, family: Family) -> None:
    """One site a block, fused, with its router and shared branch; nothing runs through torch."""
    report = report_of(model)
    kinds = family.settings.get("layers_block_type", ["moe", "moe"])
    count = kinds.count("moe") * len(compilations(model))
    assert report.count("moe", None) == report.count("moe") == count, report
    assert report.count("route", None) == 0, "routers belong to their blocks"
    blocks = [s for s in report.sites if s.pattern == "moe"]
    assert all("router" in s.details for s in blocks)
    if family.model_type in SHARED:
        assert all("shared" in s.details for s in blocks)
        assert not any(s.details["shared"].startswith("apart") for s in blocks)
    assert all(s.reason for s in report.sites if s.status == "missed")
    left = {k.op for k in report.kernels if k.status == "reference"}
    assert not left & {"sort", "topk", "grouped_matmul", "index_put", "matmul", "moe", "route"}


@EACH
@DTYPES
def test_prefill(family: Family, dtype: torch.dtype) -> None:
    assert_explained(prefilled(family.build(dtype), ((2, 7), (1, 1), (3, 13))), family)


@EACH
@DTYPES
def test_decode(family: Family, dtype: torch.dtype) -> None:
    assert_explained(decoded(family.build(dtype), STEPS), family)


class Gathered(nn.Module):
    """Matrices of up as ``[N, K]``, of down as ``[K, N]``, gathered for each token's experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(24, 5, bias=False)
        self.up = nn.Parameter(torch.randn(5, 40, 24) * 0.2)
        self.down = nn.Parameter(torch.randn(5, 20, 24) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = F.softmax(self.router(x), -1).topk(2, -1)
        ids = chosen.reshape(-1)
        rows = x[:, None].expand(-1, 2, -1).reshape(-1, 24, 1)
        gate, up = torch.bmm(self.up[ids], rows).chunk(2, 1)
        inner = (F.silu(gate) * up).squeeze(-1)
        outer = torch.bmm(inner[:, None], self.down[ids]).reshape(-1, 24)
        return (outer * weights.reshape(-1, 1)).reshape(-1, 2, 24).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_experts_run_in_a_kernel_or_are_left_alone(dtype: torch.dtype) -> None:
    """However matrices lie; of a type without kernels the model's own products are faster."""
    cast("Any", torch).manual_seed(0)
    model = Gathered().to(dtype)
    compiled = fuseline.compile(model)
    x = torch.randn(7, 24, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    (site,) = [s for s in cast("Any", compiled).report().sites if s.pattern == "moe"]
    if dtype is torch.float32:
        assert site.kernel.startswith("experts_")
    else:
        assert site.reason == "x of the experts is f64: there are kernels for f32, bf16, f16"
