"""The example of latent attention and latent experts: trained, and compiled to the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fuseline
from examples.latent_moe import corpus, generate, train
from examples.latent_moe.generate import WEIGHTS, cache_bytes, continuation, greedy
from examples.latent_moe.model import END, CacheForm, LatentMoe, ModelConfig, load, save
from fuseline.debug.oracle import oracle, relative_error

PROMPT = list(b"Return a list of")
LAYERS = ModelConfig().layers
TINY = ModelConfig(length=160, hidden=24, layers=2, latent=12, expert_width=10, shared_width=14)


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """What eager writes."""
    return greedy(load(WEIGHTS), PROMPT, 200)


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return corpus.windows(corpus.documentation(held_out=True), ModelConfig().length)


def test_the_weights_are_small_enough_to_ship() -> None:
    assert WEIGHTS.stat().st_size < 5_000_000


def test_the_model_knows_more_than_pairs_of_bytes(held_out: Tensor) -> None:
    """The bigram model is even counted on what it is asked about."""
    excerpt = held_out[::8]
    loss = train.model_loss(load(WEIGHTS), excerpt)
    assert loss < corpus.Bigram(held_out.flatten()).loss(excerpt) - 0.3
    recorded = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert recorded["held_out_loss"] < recorded["bigram_loss"] - 0.3
    assert abs(loss - recorded["held_out_loss"]) < 0.15


def test_all_experts_are_used(held_out: Tensor) -> None:
    for layer in train.shares(load(WEIGHTS), held_out[::16]):
        assert min(layer) > 0.1 / len(layer)


@pytest.mark.parametrize("cache", ["expanded", "latent"])
def test_both_caches_give_the_text_of_the_whole_sequence(
    cache: CacheForm, expected: list[int]
) -> None:
    """Shown everything at once and no cache, the model would write each of these tokens."""
    model = load(WEIGHTS, cache=cache)
    assert greedy(model, PROMPT, 200) == expected
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT + expected[:-1]]))[0, len(PROMPT) - 1 :]
    assert logits.argmax(-1).equal(torch.tensor(expected))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("cache", "kept", "sites"),
    [
        ("expanded", "model", {"mla", "moe"}),
        pytest.param("latent", "model", {"mla", "moe"}, marks=pytest.mark.slow),
        pytest.param("expanded", "latent", {"mla", "moe", "latent_cache"}, marks=pytest.mark.slow),
    ],
)
def test_compiled_text_is_eagers(
    cache: CacheForm, kept: Any, sites: set[str], expected: list[int]
) -> None:
    """The same 200 tokens with the model's own cache of either form, and with latents for it."""
    model = load(WEIGHTS, cache=cache)
    compiled: Any = fuseline.compile(load(WEIGHTS, cache=cache), cache=kept)
    ours, eagers = (torch.stack([*continuation(m, PROMPT, 200)]) for m in (compiled, model))
    assert ours.argmax(-1).equal(torch.tensor(expected))
    ids = torch.tensor([PROMPT + expected[:-1]])
    exact = oracle(model, ids)[0, len(PROMPT) - 1 :]
    allowed = 1.5 * relative_error(eagers, exact) + torch.finfo(torch.float32).eps
    assert relative_error(ours, exact) <= allowed

    report = compiled.report()
    assert report.stats["programs"] == 2
    assert report.stats["graph breaks"] == 0
    for pattern in sites:
        assert report.count(pattern) == report.count(pattern, None) == 2 * LAYERS
    assert not [site for site in report.sites if site.status == "missed"]
    wide = "latent" not in (cache, kept)
    for site in report.sites:
        if site.pattern == "mla":
            assert site.details["cache bytes per token"] == "256 latent, 1280 expanded"
            assert site.details["cache"].startswith("expanded" if wide else "latent")


def test_the_latent_cache_is_a_fifth_of_the_expanded_one() -> None:
    sizes = {
        form: cache_bytes(LatentMoe(ModelConfig(), cache=form)) for form in ("expanded", "latent")
    }
    assert sizes == {"expanded": 4 * LAYERS * 320, "latent": 4 * LAYERS * 64}


@pytest.mark.parametrize("argv", [["--prompt", ""], ["--tokens", "0"], ["--tokens", "241"]])
def test_text_that_does_not_fit_is_refused(argv: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        generate.main(argv)
    assert "leaves room for 1 to" in capsys.readouterr().err


def test_text_shows_where_a_text_ends_and_bytes_that_are_none() -> None:
    assert generate.text([*b"ab", END, 0xC3, 0xA9, 0xFF]) == "ab\n\né\ufffd"


# -- training ---------------------------------------------------------------------------------


def trained(out: Path, *argv: str, tied: bool = True) -> tuple[int, float]:
    options = train.parsed(["--batch", "2", "--out", str(out), *argv])
    model = LatentMoe(ModelConfig(**{**vars(TINY), "tied": tied}))
    model.initialize(torch.Generator().manual_seed(options.seed))
    tokens = torch.arange(1000) * 7 % 31
    return train.optimise(model, tokens, options)


@pytest.mark.parametrize("tied", [True, False])
def test_a_seed_decides_the_weights(tied: bool, tmp_path: Path) -> None:
    names = ("first", "again", "other")
    for name, seed in zip(names, "003", strict=True):
        out = tmp_path / f"{name}.safetensors"
        steps, _ = trained(out, "--steps", "3", "--seed", seed, tied=tied)
        assert steps == 3
    first, again, other = ((tmp_path / f"{n}.safetensors").read_bytes() for n in names)
    assert first == again != other
    assert len(list(tmp_path.iterdir())) == 3, "nothing partial is left"


def test_training_learns(tmp_path: Path) -> None:
    _, start = trained(tmp_path / "a.safetensors", "--steps", "1")
    _, end = trained(tmp_path / "b.safetensors", "--steps", "40", "--rate", "0.01")
    assert end < start - 0.5


def test_training_goes_on_with_weights_and_longer_rows(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    _, before = trained(first, "--steps", "40", "--rate", "0.01")
    first.with_suffix(".json").write_text("{}")
    more = ["--start", str(first), "--length", "150", "--steps", "1", "--out", str(second)]
    options = train.parsed(more)
    model = train.begun(options)
    assert all(parameter.requires_grad for parameter in model.parameters())
    _, after = train.optimise(model, torch.arange(1000) * 7 % 31, options)
    assert after < before, "the mean over all steps"
    assert not torch.equal(load(second).output.weight, load(first).output.weight)


def test_training_stops_when_time_is_up(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    assert trained(out, "--steps", "1000", "--minutes", "0")[0] == 1
    assert out.exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_saved_weights_come_back_rounded(dtype: str, tmp_path: Path) -> None:
    model = LatentMoe(TINY)
    model.initialize(torch.Generator().manual_seed(1))
    save(model, tmp_path / "a.safetensors", getattr(torch, dtype))
    again = load(tmp_path / "a.safetensors")
    assert again.config == TINY
    assert again.output.weight is again.embedding.weight
    for name, value in model.state_dict().items():
        rounded = value if value.ndim == 1 else value.to(getattr(torch, dtype)).float()
        torch.testing.assert_close(again.state_dict()[name], rounded, rtol=0, atol=0)


@pytest.mark.parametrize(
    "argv",
    [
        ["--steps", "0"],
        ["--length", "257"],
        ["--out", "x.json"],
        ["--out", "no/x.safetensors"],
        ["--start", "no.safetensors"],
    ],
)
def test_options_that_cannot_work_are_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.parsed(argv)


def test_the_router_balances_its_load() -> None:
    """An expert that had more than the mean becomes less likely, and the choice alone sees it."""
    router = LatentMoe(TINY).routers()[0]
    with torch.no_grad():
        router.weight.zero_()
    x = torch.ones(3, TINY.hidden)
    weights, chosen = router.train()(x)
    router.balance(0.5)
    after, others = router(x)
    assert not set(chosen.flatten().tolist()) & set(others.flatten().tolist())
    torch.testing.assert_close(weights, torch.full_like(weights, TINY.route_scale / TINY.top_k))
    torch.testing.assert_close(after, weights)


def test_a_bigram_knows_what_it_has_counted() -> None:
    tokens = torch.tensor([1, 2, 1, 2, 1, 2, 1, 3] * 50)
    sure = corpus.Bigram(tokens, smoothing=1e-6)
    assert abs(sure.log_probability[2, 1].exp() - 1) < 1e-6
    assert abs(sure.log_probability[1, 2].exp() - 0.75) < 1e-6
    assert torch.allclose(sure.log_probability.exp().sum(1), torch.ones(257, dtype=torch.float64))


def test_documentation_is_that_of_modules_classes_and_functions(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        '"""A."""\nclass B:\n  """B."""\n  def c(self):\n    """C."""\n    "no"\nx = "no"\n'
    )
    assert list(corpus.docstrings(path)) == ["A.", "B.", "C."]


def test_no_module_is_on_both_sides(held_out: Tensor) -> None:
    """One in ten is held out, by name."""
    names = [f"package/module{n}.py" for n in range(2000)]
    assert 150 < sum(map(corpus.is_held_out, names)) < 250
    assert held_out.numel() > 100_000
