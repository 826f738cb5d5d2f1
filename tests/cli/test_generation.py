"""Generation on a static cache gives what transformers' own generate gives."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import RwkvConfig, RwkvForCausalLM

from fuseline import FuselineError
from fuseline.cli.generation import (
    CACHE_STEP,
    Picker,
    Sampling,
    Session,
    generate,
    static_cache,
    stop_tokens,
)
from fuseline.cli.text import Decoder
from fuseline.cli.timing import Timing
from tests.cli.helpers import ByteTokenizer, tiny_llama

PROMPT = [5, 200, 31, 8, 77]


def generated(tokens: int, sampling: Sampling, **more: Any) -> list[int]:
    session = Session(tiny_llama(), len(PROMPT) + tokens)
    return list(generate(session, PROMPT, tokens, sampling, **more))


def expected_greedy(tokens: int) -> list[int]:
    model: Any = tiny_llama()
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None)
    return out[0, len(PROMPT) :].tolist()


def test_greedy_tokens_are_those_of_transformers() -> None:
    timing = Timing()
    found = generated(21, Sampling(), timing=timing)
    assert found == expected_greedy(21)
    assert len(set(found)) > 5
    assert len(timing.steps) == 20
    assert timing.tokens_per_second is not None
    assert timing.prefill > 0


def test_generation_ends_after_a_stop_token() -> None:
    greedy = expected_greedy(12)
    stop = frozenset([greedy[4]])
    assert generated(12, Sampling(), stop=stop) == greedy[:5]


def test_one_token_needs_no_step_and_gives_no_rate() -> None:
    timing = Timing()
    assert len(generated(1, Sampling(), timing=timing)) == 1
    assert timing.steps == []
    assert timing.tokens_per_second is None


def test_sampling_depends_on_its_seed_only() -> None:
    def sample(seed: int) -> list[int]:
        return generated(12, Sampling(temperature=1.3, seed=seed))

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_the_likeliest_alone_is_greedy() -> None:
    one = Sampling(temperature=2.0, top_k=1)
    assert generated(9, one) == expected_greedy(9)
    sure = Sampling(temperature=2.0, top_p=1e-9)
    assert generated(9, sure) == expected_greedy(9)


def test_top_k_and_top_p_leave_out_the_rest() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    two = Picker(Sampling(temperature=1.0, top_k=2))
    assert {two.pick(logits) for _ in range(200)} == {1, 3}
    most = Picker(Sampling(temperature=1.0, top_p=0.75))
    assert {most.pick(logits) for _ in range(200)} == {1, 3, 2}


def test_sampled_frequencies_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    picker = Picker(Sampling(temperature=1.0))
    counts = torch.bincount(torch.tensor([picker.pick(logits) for _ in range(4000)]), minlength=3)
    assert torch.allclose(counts / 4000, torch.tensor([0.1, 0.6, 0.3]), atol=0.04)


def test_a_session_can_begin_again() -> None:
    session = Session(tiny_llama(), 40)
    session.warm_up(PROMPT)
    first = list(generate(session, PROMPT, 9, Sampling()))
    session.reset()
    assert list(generate(session, PROMPT, 9, Sampling())) == first


def test_the_cache_is_empty_in_place_and_rounded_up() -> None:
    cache: Any = static_cache(tiny_llama(), CACHE_STEP + 1)
    assert cache.get_seq_length() == 0
    for layer in cache.layers:
        assert layer.keys.shape == (1, 2, 2 * CACHE_STEP, 10)
        assert not layer.keys.any()


def test_a_model_with_another_kind_of_state_is_refused() -> None:
    """It would take the cache without a word, ignore it, and forget what it has seen."""
    config = RwkvConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, attention_hidden_size=12
    )
    with pytest.raises(FuselineError, match="FL0807 .*RwkvForCausalLM: found no past_key_values"):
        static_cache(RwkvForCausalLM(config), 9)


def test_a_cache_that_cannot_be_made_is_refused() -> None:
    model: Any = tiny_llama()
    model.config.layer_types = ["abacus", "abacus"]
    with pytest.raises(FuselineError, match="FL0807 .*no static cache for its layers"):
        static_cache(model, 9)


def test_stop_tokens_come_from_the_generation_configuration() -> None:
    model = tiny_llama()
    assert stop_tokens(model) == {257}
    cast("Any", model).generation_config.eos_token_id = [3, 4]
    assert stop_tokens(model) == {3, 4}
    cast("Any", model).generation_config.eos_token_id = None
    assert stop_tokens(model) == frozenset()


@pytest.mark.parametrize("text", ["plain words", "naïve café ☃ 日本語", "👩‍👩‍👧 family", ""])
def test_text_comes_out_whole_however_tokens_split_it(text: str) -> None:
    tokenizer = ByteTokenizer()
    decoder = Decoder(tokenizer, tokenizer.encode("a prompt"))
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + decoder.finish() == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    decoder = Decoder(ByteTokenizer(), [])
    assert [decoder.push(byte) for byte in b"ok\xe6\x97"] == ["o", "k", "", ""]
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    logits = torch.tensor([1.0, 90.0, -2.0])
    assert Picker(Sampling(temperature=1e-40)).pick(logits) == 1
