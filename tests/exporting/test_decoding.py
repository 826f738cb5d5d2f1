"""A language model as a prefill and a step over one cache: the tokens that eager gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fuseline.artifact.load import load
from fuseline.artifact.manifest import Text
from fuseline.cli.program import main
from fuseline.errors import ArtifactError
from fuseline.exporting import decoding, export_parts

transformers: Any = pytest.importorskip("transformers")

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
    config._attn_implementation = "sdpa"
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


def test_a_cache_that_counts_in_python_is_refused() -> None:
    model = small("gemma3_text", sliding_window=16, layer_types=["sliding_attention"] * 2)
    with pytest.raises(ArtifactError, match="FL1107"):
        decoding.parts(model, 1, 64)
