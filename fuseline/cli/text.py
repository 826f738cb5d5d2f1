"""Tokens to text: the part of a tokenizer that is used here, and decoding as tokens arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    chat_template: str | None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model expects."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
    ) -> str:
        """The prompt of a conversation."""
        ...


class Decoder:
    """Turns tokens into text one by one, holding back characters that are not complete yet.

    Each piece is decoded together with the one before, because tokenizers decide about spaces by
    what stands in front; the work per token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt[-8:])
        self._fresh: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is only half there."""
        self._fresh.append(token)
        text = self._pending()
        if text.endswith(_INCOMPLETE):
            return ""
        if text:
            self._context, self._fresh = self._fresh, []
        return text

    def finish(self) -> str:
        """What is left, complete or not."""
        text = self._pending()
        self._context, self._fresh = self._fresh, []
        return text

    def _pending(self) -> str:
        before = self._text(self._context)
        return self._text(self._context + self._fresh)[len(before) :]

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
