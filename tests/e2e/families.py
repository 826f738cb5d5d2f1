"""Tiny seeded models of the families that fuseline is held to, at odd sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

VOCABULARY = 131
CONTEXT = 48


@dataclass(frozen=True)
class Family:
    """One model type and its sizes; ``qk_norm`` tells whether its attention norms q and k."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    qk_norm: bool = True

    def config(self) -> Any:
        """The transformers configuration."""
        from transformers import AutoConfig

        sizes: dict[str, Any] = {
            "hidden_size": 84,
            "intermediate_size": 116,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return cast("Any", AutoConfig).for_model(self.model_type, **(sizes | self.settings))

    def build(self, dtype: torch.dtype) -> nn.Module:
        """A seeded model whose norms have weights that differ from one another."""
        from transformers import AutoModelForCausalLM

        cast("Any", torch).manual_seed(0)
        model = cast("nn.Module", cast("Any", AutoModelForCausalLM).from_config(self.config()))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 or "norm" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model.to(dtype).eval()


FAMILIES = (
    Family("llama", qk_norm=False),
    Family("qwen3", {"head_dim": 20}),
    Family("olmo2", {"num_key_value_heads": 3}),
    Family(
        "gemma3_text",
        {
            "head_dim": 20,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    Family("hunyuan_v1_dense", {"head_dim": 20}),
    Family("cohere", {"use_qk_norm": True}),
    Family("glm4", {"head_dim": 20}, qk_norm=False),
    Family(
        "phi",
        {
            "hidden_size": 80,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "qk_layernorm": True,
        },
    ),
    Family(
        "qwen3_moe",  # torch's grouped product takes rows of a multiple of 16 bytes only
        {
            "hidden_size": 88,
            "head_dim": 20,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
        },
    ),
)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Seeded token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, shape, generator=generator)


def static_cache(model: nn.Module) -> Any:
    """An empty static cache for a model."""
    from transformers import StaticCache

    return StaticCache(config=cast("Any", model).config, max_cache_len=CONTEXT)
