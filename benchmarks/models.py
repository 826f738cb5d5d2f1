"""The models that are measured, and their work: a prefill, or a decode step on a static cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fuseline import Config
from fuseline.cli import models

CAPACITY = 256
"""Tokens that a cache has room for."""

POSITION = 128
"""Tokens that the cache holds when a step begins."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SUBJECTS = {
    "smollm2": "SmolLM2-135M, trained weights, 30 layers",
    "qwen3": "Qwen3, hidden 1024, 4 layers, 16/8 heads of 128, MLP 3072, vocabulary 32000",
    "deepseek_v3": "DeepSeek-V3, hidden 1024, 4 layers, MLA 384/256, 16 heads of 64 + 32 and 64, "
    "16 experts (4 a token) of 384, 1 shared, vocabulary 32000",
    "tiny": "Qwen3, hidden 64, 2 layers, to see that the benchmark itself works",
}


def load(name: str, dtype: str, layers: int | None = None) -> Any:
    """One of `SUBJECTS`; with ``layers``, only so many of them, the first ones."""
    cast("Any", torch).manual_seed(0)
    if name == "smollm2":
        model: Any = models.load("smollm2", Config(), dtype=dtype).model
    elif name == "qwen3":
        model = _qwen3(1024, 3072, layers=4, heads=(16, 8, 128), vocabulary=32000)
    elif name == "deepseek_v3":
        model = _deepseek_v3()
    elif name == "tiny":
        model = _qwen3(64, 96, layers=2, heads=(4, 2, 16), vocabulary=101)
    else:
        raise ValueError(f"{name!r} is none of {', '.join(SUBJECTS)}")
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    return model.to(DTYPES[dtype]).eval()


def _qwen3(
    hidden: int, mlp: int, *, layers: int, heads: tuple[int, int, int], vocabulary: int
) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=heads[2],
        vocab_size=vocabulary,
        max_position_embeddings=1024,
    )
    return Qwen3ForCausalLM(config)


def _deepseek_v3() -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        hidden_size=1024,
        num_hidden_layers=4,
        first_k_dense_replace=0,
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=384,
        kv_lora_rank=256,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        moe_intermediate_size=384,
        n_shared_experts=1,
        vocab_size=32000,
        max_position_embeddings=4096,
    )
    return DeepseekV3ForCausalLM(config)


def weight_bytes(model: Any) -> int:
    """Bytes of the weights that one token reads: one row of an embedding of its own, and of routed
    experts those that it goes to.
    """
    total = sum(p.numel() * p.element_size() * _share(p, model.config) for p in model.parameters())
    total = int(total)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return total if table is head else total - table.numel() * table.element_size()


def _share(parameter: Tensor, config: Any) -> float:
    """The part of a parameter that one token reads: packed experts have three dims."""
    if parameter.dim() < 3:
        return 1.0
    return config.num_experts_per_tok / parameter.shape[0]


@dataclass
class Step:
    """A decode step, always at the same position; the cache is its own."""

    call: Callable[..., Any]
    cache: Any
    ids: Tensor

    @classmethod
    def of(cls, call: Callable[..., Any], model: Any, batch: int) -> Step:
        """A step of a model, compiled or not, with seeded keys and values in the cache."""
        from transformers import StaticCache

        cache: Any = StaticCache(config=model.config, max_cache_len=CAPACITY)
        with torch.no_grad():  # only a call tells how wide a latent cache is
            model(input_ids=token_ids(model, batch, 2), past_key_values=cache, use_cache=True)
        generator = torch.Generator().manual_seed(1)
        for layer in cache.layers:
            for memory in (layer.keys, layer.values):
                memory.copy_(torch.randn(memory.shape, generator=generator))
        return cls(call, cache, token_ids(model, batch, 1))

    def rewind(self) -> None:
        """Make the cache hold `POSITION` tokens again, so that every call does equal work."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(POSITION)

    def __call__(self) -> Tensor:
        """Logits [batch, 1, vocabulary]."""
        out = self.call(input_ids=self.ids, past_key_values=self.cache, use_cache=True)
        return out.logits


@dataclass
class Prefill:
    """All tokens at once, without a cache."""

    call: Callable[..., Any]
    ids: Tensor

    @classmethod
    def of(cls, call: Callable[..., Any], model: Any, tokens: int) -> Prefill:
        """One text of so many tokens."""
        return cls(call, token_ids(model, 1, tokens))

    def rewind(self) -> None:
        """Nothing is kept."""

    def __call__(self) -> Tensor:
        """Logits [1, tokens, vocabulary]."""
        return self.call(input_ids=self.ids, use_cache=False).logits


Work = Step | Prefill


def work(case: str, call: Callable[..., Any], model: Any) -> Work:
    """A case by name: ``decode-8`` is a step of batch 8, ``prefill-128`` a text of 128 tokens."""
    kind, number = case.split("-")
    make = {"decode": Step.of, "prefill": Prefill.of}[kind]
    return make(call, model, int(number))


def token_ids(model: Any, batch: int, tokens: int) -> Tensor:
    """Seeded token ids [batch, tokens]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, model.config.vocab_size, (batch, tokens), generator=generator)
