"""Caches that are written in part: a batch smaller than the cache, one layer of all, by index.

Each write is one in place, whatever it is spelled as, and a prefill that makes its cache is native.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from tests.codegen.oracle import assert_numbers, seeded

BATCH, HEADS, LENGTH, DIM = 4, 2, 16, 12
FORMS = ["index", "index_copy", "slice", "layer"]


class Cached(nn.Module):
    """An attention over caches ``[layers, batch, heads, length, dim]``, or one layer's alone."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.qkv = nn.Linear(20, 3 * HEADS * DIM, bias=False)
        self.keys: Tensor
        self.values: Tensor
        lead = (3,) if form == "layer" else ()
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(*lead, BATCH, HEADS, LENGTH, DIM))

    def put(self, cache: Tensor, at: Tensor, start: int, x: Tensor) -> Tensor:
        batch, tokens = x.shape[0], x.shape[2]
        match self.form:
            case "index":
                cache[:batch, :, at] = x
            case "index_copy":
                cache[:batch].index_copy_(2, at, x)
            case "slice":
                cache[:batch, :, start : start + tokens] = x
            case _:
                cache[1][1 : 1 + batch, :, at] = x
                return cache[1][1 : 1 + batch]
        return cache[:batch]

    def forward(self, x: Tensor, at: Tensor, start: int) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(x).view(batch, tokens, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        keys, values = self.put(self.keys, at, start, k), self.put(self.values, at, start, v)
        seen = torch.arange(LENGTH)[None, :] <= at[:, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)


def ready(form: str) -> tuple[Any, Any, Any]:
    """Compiled, eager, and in float64."""
    model = Cached(form).eval().requires_grad_(False)
    weight = seeded(*model.qkv.weight.shape, dtype=torch.float32)
    model.qkv.weight.data = weight / math.sqrt(20)
    return fuseline.compile(model), copy.deepcopy(model), copy.deepcopy(model).double()


@pytest.mark.parametrize("form", FORMS)
def test_steps_of_a_batch_that_is_smaller_than_the_cache(form: str) -> None:
    compiled, eager, double = ready(form)
    start = 0
    with torch.inference_mode():
        for batch, tokens in ((2, 5), (2, 1), (2, 1), (3, 2)):
            x = seeded(batch, tokens, 20, dtype=torch.float32, seed=start)
            at = torch.arange(start, start + tokens)
            y, want = compiled(x, at, start), eager(x, at, start)
            assert_numbers(y, want, double(x.double(), at, start))
            start += tokens
        for name in ("keys", "values"):
            assert_numbers(*(getattr(m, name) for m in (compiled, eager, double)))
    report = compiled.report()
    assert report.stats["host steps"] == 0
    assert report.count("in_place_write", "fused") == report.count("in_place_write") > 0
    written = {k.op for k in report.kernels} & {"index_write", "slice_write"}
    assert written == ({"slice_write"} if form == "slice" else {"index_write"})


@pytest.mark.parametrize("form", ["index", "index_copy", "layer"])
def test_places_that_are_equal_negative_or_outside(form: str) -> None:
    """As torch has it: the last of equal places counts, and nothing wraps around but once."""
    compiled, eager, double = ready(form)
    x = seeded(2, 3, 20, dtype=torch.float32)
    kinds = [[4, 9, 4]] if form == "index_copy" else [[4, 9, 4], [-1, 2, -16]]
    with torch.inference_mode():
        for places in kinds:
            at = torch.tensor(places)
            y, want = compiled(x, at, 0), eager(x, at, 0)
            seen = (torch.arange(LENGTH)[None] <= at[:, None]).any(1)
            exact = double(x.double(), at, 0)
            assert_numbers(y[:, :, seen], want[:, :, seen], exact[:, :, seen])
            for name in ("keys", "values"):
                assert_numbers(*(getattr(m, name) for m in (compiled, eager, double)))
        for places in ([4, LENGTH, 5], [4, -LENGTH - 1, 5]):
            at = torch.tensor(places)
            with pytest.raises(IndexError):
                eager(x, at, 0)
            with pytest.raises(IndexError):
                compiled(x, at, 0)


@pytest.mark.slow
def test_a_prefill_that_makes_its_cache() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=60,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=12,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    double = copy.deepcopy(model).double()
    compiled: Any = fuseline.compile(model)
    caches = [transformers.StaticCache(config=config, max_cache_len=16) for _ in range(3)]
    ids = torch.arange(10).view(2, 5)
    with torch.inference_mode():
        for given in (ids, ids[:, :1], ids[:, 1:2]):
            runs = zip((compiled, model, double), caches, strict=True)
            outs = [run(given, past_key_values=cache, use_cache=True) for run, cache in runs]
            assert_numbers(*(out.logits for out in outs))
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        assert_numbers(*(layer.keys for layer in layers))
        assert_numbers(*(layer.values for layer in layers))
    assert compiled.report().stats["host steps"] == 0
