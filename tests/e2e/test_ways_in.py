"""Every way to compile a model gives eager's results: the backend, decorators, `generate`."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from tests.cli.helpers import tiny_llama
from tests.e2e.families import FAMILIES, tokens

ROWS = torch.linspace(-2, 2, 3 * 5 * 20).reshape(3, 5, 20)


def test_the_backend_is_found_by_name() -> None:
    family = next(f for f in FAMILIES if f.model_type == "qwen3")
    model: Any = family.build(torch.float32)
    compiled: Any = cast("Any", torch).compile(model, backend="fuseline")
    ids = tokens(2, 7)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)
        longer = tokens(3, 11)
        expected = model(longer, use_cache=False).logits
        torch.testing.assert_close(compiled(longer, use_cache=False).logits, expected)


def test_a_decorated_function() -> None:
    weights = [torch.randn(n, k, generator=torch.Generator().manual_seed(n)) for n, k in SHAPES]

    def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    compiled: Any = fuseline.compile(mlp)
    with torch.no_grad():
        expected = mlp(ROWS, *weights)
        torch.testing.assert_close(compiled(ROWS, *weights), expected, atol=1e-3, rtol=1e-5)
    assert compiled.report().count("gated_mlp", None) == 1


SHAPES = ((28, 20), (28, 20), (20, 28))


@fuseline.compile(dynamic=True)
class Decorated(nn.Module):
    """A norm and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(20, eps=1e-6)
        self.out = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x))


def test_a_decorated_class() -> None:
    model: Any = Decorated().eval()
    with torch.no_grad():
        for x in (ROWS, ROWS[:1], ROWS[:, :2]):
            expected = F.linear(
                F.rms_norm(x, (20,), model.norm.weight, 1e-6), model.out.weight, model.out.bias
            )
            torch.testing.assert_close(model(x), expected)
    assert {k.status for k in model.report().kernels} == {"native"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache_implementation": "static"},
        pytest.param({"num_beams": 3}, marks=pytest.mark.slow),
        {"use_cache": False},
    ],
    ids=lambda s: next(iter(s), "dynamic cache"),
)
def test_generate_of_transformers(settings: dict[str, Any]) -> None:
    """A batch of texts of unequal length, padded on the left."""
    ids = torch.tensor([[5, 200, 31, 8, 77], [258, 258, 9, 40, 3]])
    options: dict[str, Any] = {
        "attention_mask": (ids != 258).long(),
        "max_new_tokens": 12,
        "do_sample": False,
        "eos_token_id": None,
    }
    model: Any = tiny_llama()
    compiled: Any = fuseline.compile(model)
    expected = model.generate(ids, **options, **settings)
    assert torch.equal(compiled.generate(ids, **options, **settings), expected)
    assert len(set(expected[:, 5:].flatten().tolist())) > 5
    assert compiled.report().count("attention", None) > 0


def test_generate_with_a_cache_that_grows() -> None:
    """The lengths of keys and values are two symbols, until attention reads both."""
    model: Any = tiny_llama()
    compiled: Any = fuseline.compile(model)
    ids = torch.tensor([[5, 200, 31, 8, 77]])
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert torch.equal(compiled.generate(ids, **options), model.generate(ids, **options))
    report = compiled.report()
    assert report.count("attention", "missed") == 0
    assert report.count("attention") > 0
    assert report.stats["host steps"] == 0


def test_token_ids_beyond_the_vocabulary_are_refused() -> None:
    """As eager refuses them, and the next call is none the worse for it."""
    model: Any = tiny_llama()
    compiled: Any = fuseline.compile(model)
    good = torch.tensor([[5, 200, 31, 8, 77]])
    with torch.no_grad():
        expected = model(good).logits
        for bad in (-1, model.config.vocab_size, 2**40):
            with pytest.raises(IndexError, match="FL0905 .* embedding"):
                compiled(torch.tensor([[5, 200, bad, 8, 77]]))
        torch.testing.assert_close(compiled(good).logits, expected)


def test_a_static_cache_that_is_full_is_refused() -> None:
    """Eager raises, too: what does not fit is not left out."""
    from transformers import StaticCache

    model: Any = tiny_llama()
    compiled: Any = fuseline.compile(model, dynamic=False)
    cache = StaticCache(config=model.config, max_cache_len=6)
    with torch.no_grad():
        compiled(torch.tensor([[5, 200, 31, 8]]), past_key_values=cache)
        for _ in range(2):
            compiled(torch.tensor([[5]]), past_key_values=cache)
        with pytest.raises(IndexError, match="FL0905"):
            compiled(torch.tensor([[5]]), past_key_values=cache)


def test_a_report_is_of_this_process(tmp_path: Any) -> None:
    """What an earlier one left in the cache counts once it is called for."""
    model: Any = tiny_llama()
    with torch.no_grad():
        before: Any = fuseline.compile(model, dynamic=False, cache_dir=tmp_path)
        for rows in (1, 2, 3):
            before(torch.full((rows, 4), 7))
        assert before.report().stats["programs"] == 3
        torch.compiler.reset()
        after: Any = fuseline.compile(tiny_llama(), dynamic=False, cache_dir=tmp_path)
        after(torch.full((2, 4), 7))
    assert after.report().stats["programs"] == 1
    assert after.report().stats["graphs"] == 0


def test_a_missing_compiler_is_said_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model runs all the same, by the ops' references."""
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    x = torch.linspace(-1, 1, 15).view(3, 5)
    models = [fuseline.compile(nn.RMSNorm(5), cache_dir=tmp_path / "cache") for _ in range(2)]
    wanted = nn.RMSNorm(5)(x)
    with torch.no_grad():
        with pytest.warns(fuseline.FuselineWarning, match="FL0702"):
            torch.testing.assert_close(models[0](x), wanted.detach())
        torch.testing.assert_close(models[1](x), wanted.detach())
    report = cast("Any", models[0]).report()
    assert (report.stats["native steps"], report.stats["host steps"]) == (0, 1)
