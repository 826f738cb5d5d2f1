"""A causal language model as two programs over one static cache: a prefill, and a step.

The cache is one of `fuseline.exporting.caches`. Its tensors become buffers of a module, which
programs write in place; the model keeps its own form.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fuseline.exporting import caches
from fuseline.exporting.capture import Part

EXAMPLE_LENGTH = 7
"""Tokens of the example that the prefill is traced with."""

PIECE = 32
"""Tokens of a prefill of a fixed size: few enough that its loops are not long, and more than the
kernel of a convolution."""


class CachedModel(nn.Module):
    """A model with its cache: takes ids ``[batch, tokens]``, gives the logits behind the last token
    ``[batch, vocabulary]``.

    Args:
        model: of transformers.
        batch: sequences.
        length: tokens that the cache has room for.

    Raises:
        ArtifactError: FL1107, for a model whose cache does not consist of tensors.

    """

    def __init__(self, model: nn.Module, batch: int, length: int) -> None:
        super().__init__()
        self.model = model
        self._cache = caches.static_cache(model, batch, length)
        names = inspect.signature(model.forward).parameters
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._places = list(caches.places(self._cache))
        for place in self._places:
            self.register_buffer(f"cache_{place.name}", place.tensor)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Show the model more tokens."""
        with self._held():
            out = cast("Any", self.model)(
                input_ids=input_ids, past_key_values=self._cache, use_cache=True, **self._extra
            )
            return out.logits[:, -1]

    @contextmanager
    def _held(self) -> Generator[None]:
        """The cache over the buffers that the module has now: tracing puts others there."""
        before = [place.tensor for place in self._places]
        try:
            for place in self._places:
                place.put(getattr(self, f"cache_{place.name}"))
            yield
        finally:
            for place, value in zip(self._places, before, strict=True):
                place.put(value)


def parts(model: nn.Module, batch: int, length: int) -> dict[str, Part]:
    """The programs ``prefill`` and ``decode`` (one token).

    The model is put in evaluation mode. Both programs go on from the tokens before them. A prefill
    takes 1 to ``length`` tokens; or, of a model that cannot be captured for any number of them (its
    recurrence is computed in so many pieces, by a loop in Python), `PIECE` tokens at a time.
    """
    cached = CachedModel(model, batch, length).eval()
    vocabulary = int(cast("Any", model).get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
    tokens = torch.export.Dim("tokens", min=1, max=length)
    piece = Part(cached, (ids[:, :PIECE].contiguous(),))
    example = ids[:, :EXAMPLE_LENGTH].contiguous()
    return {
        "prefill": Part(cached, (example,), {}, ({1: tokens},), otherwise=piece),
        "decode": Part(cached, (ids[:, :1].contiguous(),)),
    }


__all__ = ["CachedModel", "parts"]
