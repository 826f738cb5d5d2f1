"""A causal language model as two programs over one static cache: a prefill, and a step.

The cache is `transformers.StaticCache`. Its tensors become buffers of a module, which programs
write in place; the model keeps its own form.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fuseline import errors
from fuseline.exporting.export import Part

EXAMPLE_LENGTH = 7
"""Tokens of the example that the prefill is traced with."""


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
        self._cache = _static_cache(model, batch, length)
        names = inspect.signature(model.forward).parameters
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._places: list[tuple[str, Any, str]] = []
        for number, layer in enumerate(self._cache.layers):
            for name, value in cast("dict[str, Any]", vars(layer)).items():
                if isinstance(value, Tensor):
                    self._places.append((f"cache_{number}_{name}", layer, name))
                    self.register_buffer(self._places[-1][0], value)

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
        before = [getattr(layer, name) for _, layer, name in self._places]
        try:
            for buffer, layer, name in self._places:
                setattr(layer, name, getattr(self, buffer))
            yield
        finally:
            for (_, layer, name), value in zip(self._places, before, strict=True):
                setattr(layer, name, value)


def parts(model: nn.Module, batch: int, length: int) -> dict[str, Part]:
    """The programs ``prefill`` (1 to ``length`` tokens) and ``decode`` (one token)."""
    cached = CachedModel(model, batch, length).eval()
    vocabulary = int(cast("Any", model).get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    example = min(EXAMPLE_LENGTH, length)
    ids = torch.randint(0, vocabulary, (batch, example), generator=generator)
    tokens = torch.export.Dim("tokens", min=1, max=length)
    return {
        "prefill": Part(cached, (ids,), {}, ({1: tokens},)),
        "decode": Part(cached, (ids[:, :1],)),
    }


def _static_cache(model: nn.Module, batch: int, length: int) -> Any:
    """An empty cache with its tensors in place: layers make them when they first see keys."""
    from transformers import StaticCache

    name = type(model).__name__
    config: Any = model.config
    try:
        cache: Any = StaticCache(config=config, max_cache_len=length)
        with torch.no_grad():
            cast("Any", model)(
                input_ids=torch.zeros(batch, 1, dtype=torch.int64),
                past_key_values=cache,
                use_cache=True,
            )
        cache.reset()
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        found = f"no static cache for its layers ({type(error).__name__}: {error})"
        raise errors.CANNOT_EXPORT.error(name, found=found) from error
    for number, layer in enumerate(cache.layers):
        counts = [
            key
            for key, value in cast("dict[str, Any]", vars(layer)).items()
            if isinstance(value, int) and not isinstance(value, bool) and "cumulative" in key
        ]
        if counts:
            found = f"layer {number} of its cache ({type(layer).__name__}), which counts in Python"
            raise errors.CANNOT_EXPORT.error(
                name, found=found, hint="export it without --decode: its forward pass has no cache"
            )
    return cache


__all__ = ["CachedModel", "parts"]
