"""What `test_determinism.py` compiles, in processes of its own: models by name."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.e2e.families import FAMILIES, Family, tokens

LATENT = Family(
    "deepseek_v3",
    {
        "hidden_size": 88,  # torch's grouped product takes rows of a multiple of 16 bytes only
        "num_key_value_heads": 6,
        "q_lora_rank": 36,
        "kv_lora_rank": 44,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 8,
        "v_head_dim": 24,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 40,
        "first_k_dense_replace": 1,
    },
    qk_norm=False,
)
"""Latent attention, a dense layer, and experts beside a shared branch."""


class Norms(nn.Module):
    """A norm, products that are merged, and a sum of both: few kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(20, eps=1e-6)
        self.q, self.k = (nn.Linear(20, 12, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(x)
        q = self.q(y)
        return q, torch.sigmoid(self.k(y)) + q * 2


def model_of(name: str) -> nn.Module:
    """The model of a name."""
    if name == "norms":
        cast("Any", torch).manual_seed(0)
        return Norms().eval()
    families = {family.model_type: family for family in (*FAMILIES, LATENT)}
    return families[name].build(torch.float32)


def inputs_of(name: str) -> dict[str, Any]:
    """What it is called with."""
    if name == "norms":
        return {"x": torch.ones(2, 3, 20)}
    return {"input_ids": tokens(2, 7), "use_cache": False}
