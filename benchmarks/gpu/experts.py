"""A block of experts as in Qwen3-30B-A3B, router included: 128 of 768, 8 a token, hidden 2048.

Eager and torch.compile take the form with grouped products, which transformers has for GPUs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import Json
from benchmarks.gpu.compare import in_graphs
from benchmarks.gpu.device import Device

SETS = 8
"""Inputs that take turns; each goes to experts of its own."""

MOST_DIFFERENT = 0.1
"""From eager: a token whose experts are nearly equal may go to another one."""


def block(device: Device) -> Any:
    """The block with small seeded weights, made where they are used."""
    modeling: Any = importlib.import_module("transformers.models.qwen3_moe.modeling_qwen3_moe")
    sizes: Json = {"num_experts": 128, "hidden_size": 2048, "moe_intermediate_size": 768}
    if device.quick:
        sizes = {"num_experts": 16, "hidden_size": 64, "moe_intermediate_size": 32}
    config = modeling.Qwen3MoeConfig(**sizes, num_experts_per_tok=8, norm_topk_prob=True)
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        model = modeling.Qwen3MoeSparseMoeBlock(config).to(torch.bfloat16)
    model = model.to_empty(device=device.name).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator(device.name).manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.02, generator=generator)
    return model


def used_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the weights that an eager run reads: of routed experts those that have tokens, and
    of an embedding of its own none.
    """
    unused = 0.0

    def note(module: Any, given: tuple[Any, ...]) -> None:
        nonlocal unused
        share = given[1].unique().numel() / module.num_experts
        unused += (1 - share) * nbytes(module)

    both = ("gate_up_proj", "num_experts")
    experts = [m for m in model.modules() if all(hasattr(m, name) for name in both)]
    hooks = [m.register_forward_pre_hook(note) for m in experts]
    run()
    for hook in hooks:
        hook.remove()
    tables = sum(nbytes(m) for m in model.modules() if isinstance(m, nn.Embedding))
    return int(nbytes(model) - tables - unused)


def nbytes(module: nn.Module) -> int:
    """Bytes of its parameters."""
    return sum(p.nbytes for p in module.parameters())


def measure(device: Device, tokens: int, without: Sequence[str]) -> Json:
    """Samples and figures for one number of tokens."""
    model = block(device)
    width: int = model.gate.hidden_dim
    inputs = [(device.random(1, tokens, width, seed=seed),) for seed in range(SETS)]
    used = sum(used_bytes(model, partial(model, *given)) for given in inputs) / SETS
    found = in_graphs(device, model, inputs, MOST_DIFFERENT, without)
    return {"bytes": int(used) + 2 * inputs[0][0].nbytes, **found}
