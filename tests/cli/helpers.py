"""Small models and a tokenizer for the tests of the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def module_of_user(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that has this text, in a folder that becomes the working directory."""
    name = f"user_{folder.name}"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return name


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """A seeded llama of odd sizes; 259 tokens: the bytes and three special ones."""
    cast("Any", torch).manual_seed(7)
    sizes: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 60,
        "intermediate_size": 76,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    }
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes)))
    for parameter in model.parameters():  # the default is so small that logits hardly differ
        torch.nn.init.normal_(parameter, std=0.2)
    return cast("LlamaForCausalLM", cast("Any", model).eval())


class ByteTokenizer:
    """One token per byte of UTF-8, and three special tokens that print as nothing."""

    chat_template: str | None = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
    ) -> str:
        raise AssertionError("there is no template")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The same as a tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}:"
    return fast


def save_directory(folder: Path, *, tokenizer: bool = True) -> LlamaForCausalLM:
    """A Hugging Face directory of the tiny llama."""
    model = tiny_llama()
    cast("Any", model).save_pretrained(folder)
    if tokenizer:
        cast("Any", byte_tokenizer()).save_pretrained(folder)
    return model
