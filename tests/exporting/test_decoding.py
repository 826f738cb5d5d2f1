"""A language model as a prefill and a step over one cache: the tokens that eager gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fuseline.artifact.load import load
from fuseline.artifact.manifest import Text
from fuseline.cli.program import main
from fuseline.debug.oracle import oracle
from fuseline.errors import ArtifactError
from fuseline.exporting import decoding, export_parts
from tests.e2e.harness import assert_numbers_rule

transformers: Any = pytest.importorskip("transformers")
StaticLayer: Any = transformers.cache_utils.StaticLayer

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 131,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def small(kind: str, **sizes: Any) -> Any:
    """A seeded model."""
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **sizes})
    cast("Any", torch).manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["qwen3", pytest.param("llama", marks=pytest.mark.slow)])
def test_greedy_tokens_are_eagers(tmp_path: Path, kind: str) -> None:
    model = small(kind)
    text = Text(1, 64, (2,), None)
    path = export_parts(
        decoding.parts(model, 1, 64), path=tmp_path / "model.fuse", text=text, strict=True
    ).path
    loaded = load(path, threads=1)
    for prompt in ([7, 101, 5, 88, 13, 52, 9], [3], [11, 12]):
        loaded.reset()
        ids = torch.tensor([prompt])
        with torch.no_grad():
            want = model.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=None)
            token = loaded.programs["prefill"](ids).argmax(-1)
            found = [int(token)]
            while len(found) < 16:
                token = loaded.programs["decode"](token[None]).argmax(-1)
                found.append(int(token))
        assert found == want[0, len(prompt) :].tolist()


def test_generate_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small("qwen3")
    path = tmp_path / "model.fuse"
    export_parts(decoding.parts(model, 1, 32), path=path, text=Text(1, 32, (), None))
    assert main(["generate", str(path), "--ids", "7", "101", "5", "--tokens", "9", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        ids = torch.tensor([[7, 101, 5]])
        want = model.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=None)
    assert answer["tokens"] == want[0, 3:].tolist()
    assert answer["target"] == "cpu:native"
    assert main(["generate", str(path), "--ids", "7", "--tokens", "32", "--json"]) == 2
    assert "32" in json.loads(capsys.readouterr().out)["error"]["expected"]
    assert main(["generate", str(path), "--prompt", "text"]) == 1
    assert "--ids" in capsys.readouterr().err
    assert main(["generate", str(path), "--ids", "7", "101", "5", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 29  # as many as there is room for
    assert main(["run", str(path), "--length", "5", "--runs", "9", "--json"]) == 0
    programs = json.loads(capsys.readouterr().out)["programs"]
    assert programs["prefill"]["inputs"] == ["int64[1, 5]"]
    assert programs["decode"]["outputs"] == ["float32[1, 131]"]


def test_a_full_cache_says_how_to_get_more_room(tmp_path: Path) -> None:
    parts = decoding.parts(small("qwen3"), 1, 8)
    path = export_parts(parts, path=tmp_path / "model.fuse", text=Text(1, 8, (), None)).path
    loaded = load(path, threads=1)
    token = torch.tensor([[3]])
    loaded.programs["prefill"](token.expand(1, 8).contiguous())
    with pytest.raises(IndexError, match=r"FL0905.*room for 8 tokens: reset\(\).*static:LENGTH"):
        loaded.programs["decode"](token)
    loaded.reset()
    loaded.programs["decode"](token)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "--ids", "7", "--prompt", "text"], "--prompt: found it with --ids"),
        (["generate", "--ids", "7", "--chat"], "--chat: found it with --ids"),
        (["generate", "--ids", "7", "--dtype", "bfloat16"], "--dtype: found it with x.fuse"),
        (["generate", "--ids", "7", "--eager"], "--eager: found it with x.fuse"),
        (["run", "--dtype", "bfloat16"], "--dtype: found it with x.fuse"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_options_that_say_nothing_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], "x.fuse", *words[1:]]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--verify"], ["--verify-key", "k.pem"]], ids=lambda f: f[0])
@pytest.mark.parametrize("command", ["run", "generate"])
def test_only_files_are_verified(
    command: str, flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "smollm2", *flag]) == 2
    assert f"{flag[0]}: found it with smollm2, expected a .fuse file" in capsys.readouterr().err


WINDOW: dict[str, Any] = {"sliding_window": 8}
EXPERTS: dict[str, Any] = {
    "hidden_size": 88,  # torch's grouped product takes rows of a multiple of 16 bytes only
    "intermediate_size": 40,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
}
CHUNK: dict[str, Any] = {
    "attention_chunk_size": 8,
    "intermediate_size_mlp": 56,
    "interleave_moe_layer_step": 1,
}
MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}


def window(kind: str, *, slow: bool = True, **sizes: Any) -> Any:
    """A model with a window of 8 tokens in some layer."""
    return pytest.param(kind, sizes, id=kind, marks=[pytest.mark.slow] if slow else [])


def logits(model: Any, prompt: list[int], rest: list[int]) -> Tensor:
    """Eager's, behind a prompt and each of the tokens after it, through a cache of its own."""
    cache = transformers.DynamicCache(config=model.config)
    found: list[Tensor] = []
    for ids in (prompt, *([token] for token in rest)):
        out = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
        found.append(out.logits[:, -1])
    return torch.cat(found)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="f32"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        window("gemma3_text", slow=False, **WINDOW, **MIXED),
        window("gemma2", **WINDOW),
        window("mistral", **WINDOW),
        window("gpt_oss", **WINDOW, **EXPERTS),
        window("llama4_text", **EXPERTS, **CHUNK),
        window("lfm2", layer_types=["conv", "full_attention"]),
    ],
)
def test_layers_with_windows_and_states(
    tmp_path: Path, kind: str, sizes: dict[str, Any], dtype: torch.dtype
) -> None:
    """Prompts shorter and longer than the window, and steps past it, are eager's."""
    model = small(kind, **sizes).to(dtype)
    path = export_parts(decoding.parts(model, 1, 32), path=tmp_path / "model.fuse").path
    loaded = load(path, threads=1)
    for prompt in ([7], [7, 101, 5, 88, 13], [3, 99, 41, 5, 17, 120, 8, 64, 23, 77, 9, 31, 50]):
        loaded.reset()
        with torch.no_grad():
            made: Tensor = model.generate(
                torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None
            )[0]
            text = [int(token) for token in made]
            rest = text[len(prompt) : -1]
            eager = logits(model, prompt, rest)
        whole = oracle(model, torch.tensor([text]), use_cache=False).logits
        exact = whole[0, len(prompt) - 1 : -1]
        shown = [prompt, *([token] for token in rest)]
        found = torch.cat(
            [
                loaded.programs["decode" if n else "prefill"](torch.tensor([ids]))
                for n, ids in enumerate(shown)
            ]
        )
        assert_numbers_rule(found, eager, exact)
        if dtype is torch.float32:
            assert [int(token) for token in found.argmax(-1)] == text[len(prompt) :]


def test_a_prompt_in_pieces(tmp_path: Path) -> None:
    """A prefill goes on from the tokens before it, as a step does; also where there are states."""
    model = small("lfm2", layer_types=["conv", "full_attention"])
    cached = decoding.CachedModel(model, 1, 32).eval()
    ids = torch.tensor([[3, 99, 41, 5, 17, 120, 8, 64, 23, 77]])
    with torch.no_grad():
        want = model(ids).logits
        for first, last in ((0, 1), (1, 3), (3, 7), (7, 10)):
            found = cached(ids[:, first:last])
            assert torch.allclose(found, want[:, last - 1], atol=1e-5)


RECURRENT: dict[str, dict[str, Any]] = {
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 6,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": 8,
        "chunk_size": 8,
    },
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrences_of_any_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Prompts shorter than a piece, of one, and of some and a rest."""
    model, path = small(kind, **RECURRENT[kind]), tmp_path / "model.fuse"
    export_parts(decoding.parts(model, 1, 96), path=path, text=Text(1, 96, (), None))
    for length in (1, 5, decoding.PIECE, 2 * decoding.PIECE + 6):
        prompt = [3 + (17 * n + length) % 120 for n in range(length)]
        words = ["generate", str(path), "--ids", *map(str, prompt), "--tokens", "12", "--json"]
        assert main(words) == 0
        with torch.no_grad():
            want: Tensor = model.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
            )[0, length:]
        assert json.loads(capsys.readouterr().out)["tokens"] == [int(token) for token in want]


class Counting(StaticLayer):
    """Counts its tokens in Python."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own: Any = super()
        own.__init__(*args, **kwargs)
        self.seen = 0

    def update(self, key_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.seen += key_states.shape[-2]
        own: Any = super()
        return own.update(key_states, *args, **kwargs)

    def reset(self) -> None:
        own: Any = super()
        own.reset()
        self.seen = 0


class Growing(StaticLayer):
    """Has another tensor after each call."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = super()
        found = own.update(*args, **kwargs)
        self.keys: Any = self.keys.clone()
        return found


class Forgetting(StaticLayer):
    """Has seen nothing."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = super()
        found = own.update(*args, **kwargs)
        cast("Any", self).cumulative_length.zero_()
        return found


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Counting, r"layer 0 \(Counting\).*seen changes from 0 to 4"),
        (Growing, r"layer 0 \(Growing\).*keys is replaced"),
        (Forgetting, "in two calls"),
    ],
)
def test_a_state_that_is_not_in_tensors_is_refused(
    monkeypatch: pytest.MonkeyPatch, layer: type[Any], why: str
) -> None:
    mapping = transformers.cache_utils.STATIC_LAYER_TYPE_MAPPING
    monkeypatch.setitem(mapping, "full_attention", layer)
    with pytest.raises(ArtifactError, match=f"FL1107.*{why}"):
        decoding.parts(small("llama"), 1, 32)


def test_a_model_that_does_not_use_the_cache_is_refused() -> None:
    """It calls it by another name."""
    config = transformers.MambaConfig(
        hidden_size=48, num_hidden_layers=2, vocab_size=131, state_size=8, time_step_rank=4
    )
    model = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(ArtifactError, match="FL1107.*in two calls"):
        decoding.parts(model, 1, 32)
