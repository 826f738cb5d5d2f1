"""Decode steps of models with random weights, over a static cache that is full.

Widths are those of released models, layers are fewer, and the vocabulary is small: what is measured
are the layers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import fuseline
from benchmarks.common import Json, by_turns, medians
from benchmarks.gpu.compare import first_calls
from benchmarks.gpu.device import Device
from benchmarks.gpu.experts import used_bytes

CONTEXT = 1024

MOST_DIFFERENT = 0.5
"""From eager: routers of random weights send nearly equal tokens elsewhere; nonsense is 1."""


@dataclass(frozen=True)
class Subject:
    """A model: what transformers calls its kind, its sizes, and small ones to try it out."""

    title: str
    kind: str
    sizes: Mapping[str, Any]
    small: Mapping[str, Any]

    def build(self, device: Device) -> Any:
        """The model in bfloat16, with seeded weights that are made where they are used."""
        transformers: Any = importlib.import_module("transformers")
        sizes = {**self.sizes, **(self.small if device.quick else {})}
        sizes |= {"vocab_size": 1024, "max_position_embeddings": 4096}
        config = transformers.AutoConfig.for_model(
            self.kind, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
        config._attn_implementation = "sdpa"
        cast("Any", torch).manual_seed(0)
        with torch.device(device.name):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model = model.to(device.name, torch.bfloat16).eval().requires_grad_(requires_grad=False)
        if any(hasattr(module, "num_experts") for module in model.modules()):
            model.set_experts_implementation("grouped_mm")
        return model


SUBJECTS = {
    "qwen3": Subject(
        "Qwen3-8B, 8 layers",
        "qwen3",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 8,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
    ),
    "qwen3_moe": Subject(
        "Qwen3-30B-A3B, 8 layers",
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 8,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
        },
        {
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "deepseek_v3": Subject(
        "DeepSeek-V3, one dense and one expert layer",
        "deepseek_v3",
        {"num_hidden_layers": 2, "first_k_dense_replace": 1},
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
}


@dataclass
class Step:
    """A decode step, always of the last token that its cache has room for."""

    call: Callable[..., Any]
    model: Any
    cache: Any
    ids: Tensor
    context: int

    @classmethod
    def of(cls, call: Callable[..., Any], model: Any, device: Device, batch: int) -> Step:
        """A step of a model, compiled or not, with seeded keys and values in the cache."""
        from transformers import StaticCache

        context = 32 if device.quick else CONTEXT
        cache: Any = StaticCache(config=model.config, max_cache_len=context)
        generator = torch.Generator(device.name).manual_seed(1)
        ids = torch.randint(3, 1024, (batch, 3), generator=generator, device=device.name)
        model(input_ids=ids[:, :2], past_key_values=cache, use_cache=True)  # makes its memory
        for layer in cache.layers:
            for memory in (layer.keys, layer.values):
                memory.normal_(generator=generator)
        return cls(call, model, cache, ids[:, 2:], context)

    def rewind(self) -> None:
        """Make the cache lack one token again, so that every call does equal work."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context - 1)
        torch.compiler.cudagraph_mark_step_begin()  # earlier results may be overwritten

    def __call__(self) -> Tensor:
        """Logits [batch, 1, vocabulary]."""
        out = self.call(input_ids=self.ids, past_key_values=self.cache, use_cache=True)
        return out.logits

    def rewound(self) -> Tensor:
        """The same, on the cache as it was before."""
        self.rewind()
        return self()

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def measure(
    device: Device, name: str, batch: int, modes: Sequence[str], without: Sequence[str]
) -> Json:
    """Samples and figures of one model at one batch: seconds until a step's logits are there."""
    model = SUBJECTS[name].build(device)
    own: Any = fuseline.compile(model, dynamic=False)
    calls: dict[str, Callable[..., Any]] = {"fuseline": own}  # first: it may move weights
    for mode in modes:
        compiled = cast("Any", torch.compile)(model, dynamic=False, mode=mode)
        calls[f"torch.compile {mode}"] = compiled
    calls = {n: c for n, c in calls.items() if n.split()[0] not in without} | {"eager": model}
    steps = {n: Step.of(call, model, device, batch) for n, call in calls.items()}
    first = first_calls(device, {n: s.rewound for n, s in steps.items()}, MOST_DIFFERENT)
    alive = {n: step for n, step in steps.items() if n not in first.errors}
    for step in alive.values():
        for _ in range(4):  # some record in their second or third call
            step.rewound()

    def before(contender: str) -> None:
        alive[contender].rewind()
        device.wait()

    samples = by_turns(
        {n: device.waited(step) for n, step in alive.items()},
        seconds=0.1 if device.quick else 2.0,
        least=3 if device.quick else 8,
        calls=5,
        untimed=2,
        before=before,
    )
    return {
        "weight_bytes": used_bytes(model, steps["eager"].rewound),
        "cache_bytes": steps["eager"].cache_bytes,
        "median_s": medians(samples),
        **first.facts(),
        "stats": dict(own.report().stats),
        "samples_s": samples,
    }
