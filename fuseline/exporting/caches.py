"""Caches of transformers models whose whole state is tensors that are written in place.

A program of an artifact keeps tensors from call to call, and nothing else. transformers' static
caches mostly are that. Two kinds of layers are not as they come:

- A layer with a window keeps the latest tokens alone, and counts in Python how many it has seen.
  Here it keeps all tokens, as a layer without a window does: the model's own mask is the window. It
  takes more memory, no token is ever moved, and attention reads only what the mask lets through.
- A layer with a state (of a convolution, of a recurrence) notes in Python whether there is one yet.
  Here there always is one: of zeros, which is what models begin with. A prefill so goes on from
  the tokens before it, as a step does.

Which layers those are follows from their classes; what a model's own classes do is watched in
calls: a layer whose tensors are replaced, or that changes anything else, cannot be exported, and
tokens in two calls must give what they give in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from fuseline import errors
from fuseline.debug.oracle import relative_error

TOKENS = 4
"""Tokens that the cache is tried with."""


@dataclass(frozen=True)
class Place:
    """Where a cache holds a tensor.

    Attributes:
        name: that no other place of the cache has.
        layer: of the cache.
        attribute: of the layer: the tensor, or a dict with it.
        key: in that dict.
    """

    name: str
    layer: Any
    attribute: str
    key: object = None

    @property
    def tensor(self) -> Tensor:
        """What is held."""
        held: Any = getattr(self.layer, self.attribute)
        return held if self.key is None else held[self.key]

    def put(self, value: Tensor) -> None:
        """Have another tensor there."""
        if self.key is None:
            setattr(self.layer, self.attribute, value)
        else:
            getattr(self.layer, self.attribute)[self.key] = value


def static_cache(model: nn.Module, batch: int, length: int) -> Any:
    """An empty cache for ``batch`` sequences of ``length`` tokens, its tensors in place.

    Raises:
        ArtifactError: FL1107, for a model without a static cache, and for a layer whose state does
            not consist of tensors.

    """
    from transformers import StaticCache

    name = type(model).__name__
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(cast("Any", model).get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, vocabulary, (batch, min(TOKENS, length)), generator=generator)
    try:
        cache: Any = StaticCache(config=cast("Any", model).config, max_cache_len=length)
        cache.layers = [_without_window(layer, length) for layer in cache.layers]
        whole = _shown(model, ids, cache)
        _empty(cache)
        alone = _shown(model, ids[:, -1:], cache)
        _empty(cache)
        own = _own(cache)
        if ids.shape[1] > 1:
            _shown(model, ids[:, :-1], cache)
        parted = _shown(model, ids[:, -1:], cache)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        found = f"no static cache for its layers ({type(error).__name__}: {error})"
        raise errors.CANNOT_EXPORT.error(name, found=found) from error
    _check_own(name, own, _own(cache))
    # In narrow types experts may be chosen otherwise; that is less than what the context changes.
    limit = 1e-3 if whole.dtype is torch.float32 else max(5e-2, relative_error(alone, whole) / 2)
    if (far := relative_error(parted, whole)) > limit:
        raise errors.CANNOT_EXPORT.error(
            name,
            found=f"other logits of tokens in two calls than in one (they differ by {far:.2g})",
            expected="a cache that stands for the tokens before",
            hint="export it without --decode: its forward pass has no cache",
        )
    _empty(cache)
    return cache


def places(cache: Any) -> Iterator[Place]:
    """Every tensor of a cache."""
    for number, layer in enumerate(cache.layers):
        for name, value in list(cast("dict[str, Any]", vars(layer)).items()):
            if isinstance(value, Tensor):
                yield Place(f"{number}_{name}", layer, name)
            elif isinstance(value, dict):
                for key, inner in cast("dict[Any, Any]", value).items():
                    if isinstance(inner, Tensor):
                        yield Place(f"{number}_{name}_{key}", layer, name, key)


def _without_window(layer: Any, length: int) -> Any:
    """A layer that keeps all tokens, where one has a window; a model still sees that it has one."""
    from transformers import cache_utils

    kind = type(layer).__name__
    if type(layer) is not getattr(cache_utils, kind, None):
        return layer  # a model's own: what it keeps is its own affair
    if kind == "StaticSlidingWindowLayer":
        whole: Any = cache_utils.StaticLayer(max_cache_len=length)
    elif kind == "LinearAttentionAndStaticSlidingWindowAttentionLayer":
        whole = cache_utils.LinearAttentionAndStaticFullAttentionLayer(
            max_cache_len=length, number_of_states=layer.number_of_states
        )
    else:
        return layer
    whole.is_sliding = True
    return whole


def _shown(model: nn.Module, ids: Tensor, cache: Any) -> Tensor:
    """Logits behind the last of some tokens that a cache has not seen."""
    with torch.no_grad():
        out = cast("Any", model)(input_ids=ids, past_key_values=cache, use_cache=True)
    return cast("Tensor", out.logits[:, -1])


def _empty(cache: Any) -> None:
    """Forget all tokens; states are there all the same."""
    cache.reset()
    for layer in cache.layers:
        states: dict[int, bool] = getattr(layer, "has_previous_state", {})
        for key in states:
            states[key] = True


def _own(cache: Any) -> dict[tuple[str, str], object]:
    """All that a cache and its layers hold, by owner and name: tensors by what they are."""
    owners: dict[str, Any] = {type(cache).__name__: cache}
    owners |= {f"layer {n} ({type(x).__name__})": x for n, x in enumerate(cache.layers)}
    return {
        (owner, name): _frozen(value)
        for owner, holder in owners.items()
        for name, value in cast("dict[str, Any]", vars(holder)).items()
        if holder is not cache or name != "layers"
    }


@dataclass(frozen=True)
class _Object:
    """What is no plain value: which one it is; held, so that no later one is taken for it."""

    identity: int
    held: object = field(compare=False)


def _frozen(value: object) -> object:
    """What compares equal as long as nothing but the elements of tensors changes."""
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return tuple((key, _frozen(inner)) for key, inner in items)
    if isinstance(value, list | tuple):
        return tuple(_frozen(inner) for inner in cast("list[object]", value))
    plain = value is None or isinstance(value, bool | int | float | str | torch.dtype)
    return value if plain else _Object(id(value), value)


def _check_own(name: str, before: Mapping[Any, object], after: Mapping[Any, object]) -> None:
    for owner, what in {**before, **after}:
        was, now = before.get((owner, what)), after.get((owner, what))
        if was == now:
            continue
        how = f"changes from {was} to {now}" if isinstance(was, bool | int) else "is replaced"
        raise errors.CANNOT_EXPORT.error(
            name,
            found=f"{owner} of its cache, whose {what} {how} in a call",
            expected="tensors that are written in place",
            hint="export it without --decode: its forward pass has no cache",
        )


__all__ = ["Place", "places", "static_cache"]
