"""`cache="latent"`: a model that caches expanded keys and values keeps their latents instead."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from fuseline.debug.oracle import oracle, relative_error
from fuseline.errors import FuselineWarning, InputError

BATCH, CAPACITY, HIDDEN = 2, 13, 28


class Attention(nn.Module):
    """MLA with a static cache of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.nope, self.rope, self.value, self.latent = 3, 6, 4, 5, 12
        self.q = nn.Linear(HIDDEN, self.heads * (self.nope + self.rope), bias=False)
        self.kv_a = nn.Linear(HIDDEN, self.latent + self.rope, bias=False)
        self.norm = nn.RMSNorm(self.latent)
        self.kv_b = nn.Linear(self.latent, self.heads * (self.nope + self.value), bias=False)
        self.o = nn.Linear(self.heads * self.value, HIDDEN, bias=False)
        self.keys: Tensor
        self.values: Tensor
        width = self.nope + self.rope
        self.register_buffer("keys", torch.zeros(BATCH, self.heads, CAPACITY, width))
        self.register_buffer("values", torch.zeros(BATCH, self.heads, CAPACITY, self.value))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, self.heads, -1).transpose(1, 2)
        latent, shared = self.kv_a(x).split([self.latent, self.rope], -1)
        both = self.kv_b(self.norm(latent)).view(b, s, self.heads, -1).transpose(1, 2)
        k, v = both.split([self.nope, self.value], -1)
        k = torch.cat([k, shared.unsqueeze(1).expand(-1, self.heads, -1, -1)], -1)
        self.keys.index_copy_(2, positions, k)
        self.values.index_copy_(2, positions, v)
        mask = torch.arange(CAPACITY) <= positions.unsqueeze(1)
        y = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)
        return self.o(y.transpose(1, 2).reshape(b, s, -1))


def build(dtype: torch.dtype) -> Attention:
    cast("Any", torch).manual_seed(0)
    return Attention().to(dtype).eval()


def calls(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """A prompt of five tokens, then six single ones."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 11, HIDDEN, generator=generator).to(dtype)
    spans = [(0, 5), *((i, i + 1) for i in range(5, 11))]
    return [(x[:, a:b], torch.arange(a, b)) for a, b in spans]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_gives_what_the_expanded_cache_gives(dtype: torch.dtype) -> None:
    plain, model = build(dtype), build(dtype)
    compiled = fuseline.compile(model, cache="latent", verify=True)
    with torch.no_grad():
        eager = [plain(*call) for call in calls(dtype)]
        wide = build(dtype).double()
        exact = oracle(lambda: [wide(x.double(), at) for x, at in calls(dtype)])
        found = [compiled(*call) for call in calls(dtype)]
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        own, limit = relative_error(ours, truth), relative_error(theirs, truth)
        assert own <= 1.5 * limit + torch.finfo(dtype).eps
    report = cast("Any", compiled).report()
    sites = [s for s in report.sites if s.pattern == "latent_cache"]
    assert {s.status for s in sites} == {"fused"}
    item = dtype.itemsize
    assert sites[0].details["cache bytes per token"] == f"{16 * item} latent, {45 * item} expanded"
    assert report.count("mla") == len(sites)


def test_leaves_the_cache_of_the_model_alone() -> None:
    model = build(torch.float32)
    compiled = fuseline.compile(model, cache="latent")
    with torch.no_grad():
        compiled(*calls(torch.float32)[0])
    assert not model.keys.any()
    assert not model.values.any()


def test_each_model_has_a_latent_cache_of_its_own() -> None:
    models = [build(torch.float32) for _ in range(2)]
    compiled = [fuseline.compile(model, cache="latent") for model in models]
    inputs = calls(torch.float32)
    with torch.no_grad():
        compiled[0](*inputs[0])
        compiled[1](inputs[0][0] * 2, inputs[0][1])
        found = compiled[0](*inputs[1])
        eager = build(torch.float32)
        eager(*inputs[0])
        torch.testing.assert_close(found, eager(*inputs[1]))


def test_other_programs_may_not_use_the_cache() -> None:
    class Reset(Attention):
        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            if x.shape[1] == 3:
                self.keys.mul_(0.5)
                return x
            return super().forward(x, positions)

    model = Reset().eval()
    compiled = fuseline.compile(model, cache="latent", dynamic=False)
    x, at = calls(torch.float32)[0]
    with torch.no_grad():
        compiled(x, at)
        with (
            pytest.warns(FuselineWarning, match="FL0907"),
            pytest.raises(InputError, match="FL0906"),
        ):
            compiled(x[:, :3], at[:3])


def _caches() -> tuple[Tensor, Tensor]:
    model = build(torch.float32)
    return torch.zeros_like(model.keys), torch.zeros_like(model.values)


def test_programs_that_name_a_cache_differently_share_its_latents() -> None:
    """A prefill and a step may be two functions."""
    model, plain = build(torch.float32), build(torch.float32)

    def run(owner: Attention, keys: Tensor, values: Tensor, x: Tensor, at: Tensor) -> Tensor:
        owner.keys, owner.values = keys, values
        return owner(x, at)

    def prefill(x: Tensor, at: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return run(model, keys, values, x, at)

    def decode(x: Tensor, at: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return run(model, k_cache, v_cache, x, at)

    caches, inputs = _caches(), calls(torch.float32)
    options: dict[str, Any] = {"cache": "latent", "dynamic": False}
    both = [fuseline.compile(f, **options) for f in (prefill, decode)]
    with torch.no_grad():
        found = [both[i > 0](*call, *caches) for i, call in enumerate(inputs[:3])]
        eager = [plain(*call) for call in inputs[:3]]
    for ours, theirs in zip(found, eager, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_keys_that_were_written_outside_are_refused_and_zeros_reset_the_latents() -> None:
    model = build(torch.float32)
    compiled = fuseline.compile(model, cache="latent", dynamic=False)
    prompt, step = calls(torch.float32)[:2]
    with torch.no_grad():
        first = compiled(*prompt)
        model.keys.zero_()
        assert torch.equal(compiled(*prompt), first)
        model(*prompt)  # eager writes keys
        with pytest.raises(InputError, match="FL0906"):
            compiled(*step)
