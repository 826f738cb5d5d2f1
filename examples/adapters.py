"""One model, many low-rank adapters, and in each batch a request for any of them.

    python examples/adapters.py [--dtype bfloat16] [--requests 6]

Every linear of a small Qwen3 (random weights) gets a stack of adapters, written as plain PyTorch:
gather the matrices of each request's adapter, multiply twice, add. Compiled, rows of one adapter
are multiplied together, and adapters that nobody asked for cost nothing. The exit code is 0 if all
sites were fused and the logits are within the numbers rule: no further from the float64 result than
1.5 times as far as eager's are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import fuseline
from fuseline.debug.oracle import oracle, relative_error

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Requests:
    """The adapter of each sequence of the batch that is being computed; -1: none."""

    adapters: Tensor | None = None


class AdaptedLinear(nn.Module):
    """A linear, and a stack of adapters ``[n, rank, in]`` and ``[n, out, rank]`` beside it."""

    def __init__(self, base: nn.Linear, requests: Requests, count: int, rank: int) -> None:
        super().__init__()
        kind = base.weight.dtype
        self.base, self.requests, self.scale = base, requests, 2.0
        a = torch.randn(count, rank, base.in_features) * base.in_features**-0.5
        b = torch.randn(count, base.out_features, rank) * 0.02
        self.a, self.b = nn.Parameter(a.to(kind)), nn.Parameter(b.to(kind))

    def forward(self, x: Tensor) -> Tensor:
        """The linear's result, and what each sequence's adapter adds to it."""
        ids = self.requests.adapters
        assert ids is not None, "call the model through `Adapted`"
        some = ids.clamp(min=0)
        delta = x @ self.a[some].mT @ self.b[some].mT * self.scale
        return self.base(x) + delta.masked_fill((ids < 0)[:, None, None], 0.0)


class Adapted(nn.Module):
    """A model whose projections have adapters, and which of them each sequence wants."""

    def __init__(self, model: nn.Module, *, count: int, rank: int) -> None:
        super().__init__()
        self.model, self.requests = model, Requests()
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if name in PROJECTIONS and isinstance(child, nn.Linear):
                    setattr(module, name, AdaptedLinear(child, self.requests, count, rank))

    def forward(self, input_ids: Tensor, adapters: Tensor, **kwargs: Any) -> Tensor:
        """Logits of sequences ``[B, S]`` with adapters ``[B]``."""
        self.requests.adapters = adapters
        return cast("Tensor", self.model(input_ids, **kwargs).logits)


def build(dtype: torch.dtype, *, count: int = 8, rank: int = 16) -> Adapted:
    """A small seeded Qwen3 with adapters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    cast("Any", torch).manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    model = cast("nn.Module", Qwen3ForCausalLM(config))
    return Adapted(model, count=count, rank=rank).to(dtype).eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a batch of requests; 0 if all is fused and right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--requests", type=int, default=6)
    args = parser.parse_args(argv)
    model = build(getattr(torch, args.dtype))
    compiled = fuseline.compile(model)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 320, (args.requests, 12), generator=generator)
    adapters = torch.randint(-1, 4, (args.requests,), generator=generator)
    with torch.no_grad():
        eager = model(tokens, adapters, use_cache=False)
        exact = oracle(model, tokens, adapters, use_cache=False)
        found = compiled(tokens, adapters, use_cache=False)
    own, theirs = relative_error(found, exact), relative_error(eager, exact)
    report = cast("Any", compiled).report()
    missed = [site for site in report.sites if site.status == "missed"]
    print(f"adapters {[int(i) for i in adapters]}: {report.count('multi_lora')} products fused")
    print(f"distance from float64: {own:.2e}, eager {theirs:.2e}")
    for site in missed:
        print(f"missed: {site.pattern} {site.where}: {site.reason}")
    return int(bool(missed) or own > 1.5 * theirs + torch.finfo(found.dtype).eps)


if __name__ == "__main__":
    sys.exit(main())
