"""A byte-level language model in plain PyTorch: MLA, grouped sigmoid routing, latent experts.

Attention is multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): queries, keys and values
come from low-rank projections, and the rotated part of the keys is shared by all heads. The MLP is
a mixture of experts: the router scores experts by a sigmoid and chooses within the best groups, and
a correction that only the choice sees balances the load (DeepSeek-V3, arXiv 2412.19437). The routed
experts work in a latent width between two projections, as in Nemotron-H; router and shared expert
read the input itself.

Shapes: b batch, s tokens, t = b * s, h heads, e experts, l latent width, i expert width.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

CacheForm: TypeAlias = Literal["expanded", "latent"]

END = 256
"""The token between two texts; the others are bytes."""


@dataclass(frozen=True)
class ModelConfig:
    """The geometry of a `LatentMoe`."""

    vocabulary: int = END + 1
    length: int = 256
    hidden: int = 192
    layers: int = 4
    tied: bool = True
    # attention
    heads: int = 4
    q_rank: int = 64
    kv_rank: int = 48
    nope: int = 32
    rope: int = 16
    value: int = 32
    theta: float = 10000.0
    # experts
    experts: int = 16
    top_k: int = 4
    groups: int = 4
    top_groups: int = 2
    latent: int = 64
    expert_width: int = 48
    shared_width: int = 128
    route_scale: float = 2.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + rope / 2) of the last dim by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class LatentAttention(nn.Module):
    """Multi-head latent attention, with a static cache of keys and values or of their latents."""

    def __init__(self, config: ModelConfig, cache: CacheForm, batch: int) -> None:
        super().__init__()
        self.config, self.cache = config, cache
        heads, width = config.heads, config.nope + config.rope
        self.q_a = nn.Linear(config.hidden, config.q_rank, bias=False)
        self.q_norm = nn.RMSNorm(config.q_rank, eps=1e-6)
        self.q_b = nn.Linear(config.q_rank, heads * width, bias=False)
        self.kv_a = nn.Linear(config.hidden, config.kv_rank + config.rope, bias=False)
        self.kv_norm = nn.RMSNorm(config.kv_rank, eps=1e-6)
        self.kv_b = nn.Linear(config.kv_rank, heads * (config.nope + config.value), bias=False)
        self.o = nn.Linear(heads * config.value, config.hidden, bias=False)

        self.first_cache: Tensor
        self.second_cache: Tensor
        if cache == "expanded":  # keys and values
            shapes = [(heads, config.length, width), (heads, config.length, config.value)]
        else:  # latents and rotated keys
            shapes = [(config.length, config.kv_rank), (1, config.length, config.rope)]
        for name, shape in zip(("first_cache", "second_cache"), shapes, strict=True):
            self.register_buffer(name, torch.zeros(batch, *shape), persistent=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Attend within x, or, where positions are given, over the cache and x."""
        config = self.config
        b, s, _ = x.shape
        q = self.q_b(self.q_norm(self.q_a(x)))
        q = q.view(b, s, config.heads, config.nope + config.rope).transpose(1, 2)
        q_nope, q_rope = q.split([config.nope, config.rope], dim=-1)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin)], dim=-1)

        latent, k_rope = self.kv_a(x).split([config.kv_rank, config.rope], dim=-1)
        latent = self.kv_norm(latent)
        k_rope = rotate(k_rope.unsqueeze(1), cos, sin)
        if positions is None:
            k, v = self.expand(latent, k_rope)
        elif self.cache == "expanded":
            k, v = self.expand(latent, k_rope)
            self.first_cache[:b, :, positions] = k
            self.second_cache[:b, :, positions] = v
            k, v = self.first_cache[:b], self.second_cache[:b]
        else:
            self.first_cache[:b, positions] = latent
            self.second_cache[:b, :, positions] = k_rope
            k, v = self.expand(self.first_cache[:b], self.second_cache[:b])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o(y.transpose(1, 2).reshape(b, s, -1))

    def expand(self, latent: Tensor, k_rope: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [b, h, s, ...] of latents [b, s, kv_rank] and rotated keys."""
        b, s, _ = latent.shape
        config = self.config
        both = self.kv_b(latent).view(b, s, config.heads, -1).transpose(1, 2)
        k_nope, v = both.split([config.nope, config.value], dim=-1)
        return torch.cat([k_nope, k_rope.expand(-1, config.heads, -1, -1)], dim=-1), v


class Router(nn.Module):
    """Chooses each token's experts within its best groups of experts, in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden))
        self.correction: Tensor
        self.register_buffer("correction", torch.zeros(config.experts))
        self.load: Tensor
        self.register_buffer("load", torch.zeros(config.experts), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and experts [t, top_k]."""
        config = self.config
        scores = torch.sigmoid(F.linear(x.float(), self.weight.float()))
        choice = scores + self.correction
        by_group = choice.view(-1, config.groups, config.experts // config.groups)
        group_scores = by_group.topk(2, dim=-1).values.sum(dim=-1)
        best = group_scores.topk(config.top_groups, dim=-1).indices
        outside = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, best, False)
        choice = by_group.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)
        chosen = choice.topk(config.top_k, dim=-1).indices
        if self.training:
            self.load += torch.bincount(chosen.flatten(), minlength=config.experts)
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * config.route_scale, chosen

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Raise the correction of experts that had fewer tokens than the mean; lower the others."""
        self.correction += rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Experts(nn.Module):
    """Gated experts with packed weights.

    All experts see all tokens, and the weights of those not chosen are zeros: at this size that
    takes less time on a CPU than to sort and gather, in training above all.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.count = config.experts
        shape = (config.experts, config.latent, config.expert_width)
        self.gate_up = nn.Parameter(torch.empty(shape[0], 2 * shape[2], shape[1]))
        self.down = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The weighted sums [t, l] of what the chosen experts make of x [t, l]."""
        gate, up = torch.einsum("tl,eil->eti", x, self.gate_up).chunk(2, dim=-1)
        y = torch.einsum("eti,eli->etl", F.silu(gate) * up, self.down)
        dense = weights.new_zeros(x.shape[0], self.count).scatter(1, chosen, weights)
        return torch.einsum("te,etl->tl", dense.to(x.dtype), y)


class SharedExpert(nn.Module):
    """A gated MLP that sees every token."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, width, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as x."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LatentExperts(nn.Module):
    """Routed experts in a latent width, beside a shared expert in the model's own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.into = nn.Linear(config.hidden, config.latent, bias=False)
        self.experts = Experts(config)
        self.back = nn.Linear(config.latent, config.hidden, bias=False)
        self.shared = SharedExpert(config.hidden, config.shared_width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as x."""
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens)
        routed = self.back(self.experts(self.into(tokens), weights, chosen))
        return (routed + self.shared(tokens)).view_as(x)


class Block(nn.Module):
    """Attention and experts, each on a normalised input, added to the residual stream."""

    def __init__(self, config: ModelConfig, cache: CacheForm, batch: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.attention = LatentAttention(config, cache, batch)
        self.experts_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.experts = LatentExperts(config)

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        """The same shape as x."""
        x = x + self.attention(self.attention_norm(x), *rest)
        return x + self.experts(self.experts_norm(x))


class LatentMoe(nn.Module):
    """The language model.

    Args:
        config: its geometry.
        cache: what the static cache holds: keys and values, or what they are expanded from.
        batch: how many texts the cache has room for.
    """

    def __init__(
        self, config: ModelConfig, *, cache: CacheForm = "expanded", batch: int = 1
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config, cache, batch) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.output = nn.Linear(config.hidden, config.vocabulary, bias=False)
        if config.tied:
            self.output.weight = self.embedding.weight
        frequencies = config.theta ** -(torch.arange(0, config.rope, 2) / config.rope)
        angles = torch.outer(torch.arange(config.length).float(), frequencies)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits [b, s, vocabulary] of ids [b, s].

        With positions [s], keys and values are written to the cache there, and all up to a token's
        own position are seen; without, the ids are whole texts and the cache is left alone.
        """
        mask = None
        if positions is None:
            cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        else:
            cos, sin = self.cos[positions], self.sin[positions]
            every = torch.arange(self.config.length, device=positions.device)
            mask = every <= positions.unsqueeze(1)
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, cos, sin, positions, mask)
        return self.output(self.norm(x))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights: the products keep the variance, and a block starts out small."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
                continue
            deviation = 0.02 if "embedding" in name else parameter.shape[-1] ** -0.5
            if name.endswith(("attention.o.weight", "back.weight", "shared.down.weight")):
                deviation /= (2 * self.config.layers) ** 0.5
            nn.init.normal_(parameter, std=deviation, generator=generator)

    def routers(self) -> list[Router]:
        """One per block."""
        return [module for module in self.modules() if isinstance(module, Router)]


def save(model: LatentMoe, path: Path, dtype: torch.dtype) -> None:
    """Write the weights, matrices in a dtype, and the geometry, replacing the file at once."""
    state = cast("dict[str, Tensor]", model.state_dict())
    if model.config.tied:
        del state["output.weight"]
    stored = {n: (x if x.ndim == 1 else x.to(dtype)).contiguous() for n, x in state.items()}
    partial = path.with_suffix(".partial")
    cast("Any", safetensors.torch).save_file(
        stored, partial, {"config": json.dumps(dataclasses.asdict(model.config))}
    )
    partial.replace(path)


def load(path: Path, *, cache: CacheForm = "expanded", batch: int = 1) -> LatentMoe:
    """The model in a file that `save` wrote, in float32, ready for inference."""
    with cast("Any", safe_open)(path, framework="pt") as file:
        config = ModelConfig(**json.loads(file.metadata()["config"]))
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    model = LatentMoe(config, cache=cache, batch=batch)
    if config.tied:
        state["output.weight"] = state["embedding.weight"]
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()
