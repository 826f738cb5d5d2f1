"""Text generation on a static cache: one prefill, then one token at a time.

The cache is `transformers.StaticCache`, whose tensors stay where they are, so that a compiled
step writes them in place. Prefill and decode go through the same model object; it makes no
difference here whether that is compiled.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fuseline.cli.timing import Timing
from fuseline.errors import NOT_A_TEXT_MODEL

if TYPE_CHECKING:
    from torch import Tensor

CACHE_STEP = 256
"""Cache lengths are multiples of this, so that runs of similar length share compiled code."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked; a temperature of 0 is greedy.

    Attributes:
        temperature: divides the logits.
        top_k: keep only so many of the likeliest tokens; None keeps all.
        top_p: keep the likeliest tokens whose probabilities sum up to this.
        seed: of the random numbers.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0


class Picker:
    """Picks tokens from logits as a `Sampling` says."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def pick(self, logits: Tensor) -> int:
        """The next token, from logits [vocabulary] of any floating type."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        ordered, order = logits.float().sort(descending=True)
        scaled = (ordered - ordered[0]) / self._sampling.temperature  # none above 0: none overflows
        probabilities = scaled[: self._sampling.top_k].softmax(0)
        # The token that crosses top_p is kept, so the likeliest one always is.
        before = probabilities.cumsum(0) - probabilities
        kept = probabilities.where(before < self._sampling.top_p, 0)
        return int(order[torch.multinomial(kept, 1, generator=self._generator)])


class Session:
    """One text in the making: a model, and the static cache that holds what it has seen.

    Args:
        model: a causal language model of transformers, compiled or not.
        length: the most tokens that will be seen.
        plain: the model uncompiled, to lay out the cache with; `model` if not given.
        prefill: the model that is shown several tokens at once; `model` if not given.
    """

    def __init__(self, model: Any, length: int, *, plain: Any = None, prefill: Any = None) -> None:
        self._model = model
        self._prefill = prefill or model
        self._cache = static_cache(plain or model, length)

    def advance(self, ids: Sequence[int]) -> Tensor:
        """Show the model more tokens; logits [vocabulary] of what follows the last of them."""
        with torch.no_grad():
            model = self._prefill if len(ids) > 1 else self._model
            return _last_logits(model, ids, self._cache)

    def warm_up(self, prompt: Sequence[int]) -> None:
        """Run a prefill and a step, which compiles both where the model is compiled."""
        self.advance(prompt)
        self.advance(prompt[-1:])
        self.reset()

    def reset(self) -> None:
        """Forget everything; the cache's tensors stay where they are."""
        self._cache.reset()


def generate(
    session: Session,
    prompt: Sequence[int],
    tokens: int,
    sampling: Sampling,
    *,
    stop: frozenset[int] = frozenset(),
    timing: Timing | None = None,
) -> Iterator[int]:
    """Yield up to `tokens` tokens that follow the prompt; ends after one of `stop`.

    Args:
        session: the model, with an empty cache that has room for prompt and tokens.
        prompt: token ids, at least one.
        tokens: how many to make.
        sampling: how they are picked.
        stop: tokens that end the text; they are yielded, too.
        timing: filled with what each call took.
    """
    timing = timing if timing is not None else Timing()
    picker = Picker(sampling)
    started = time.perf_counter()
    token = picker.pick(session.advance(prompt))
    timing.prefill = time.perf_counter() - started
    yield token
    for _ in range(tokens - 1):
        if token in stop:
            return
        started = time.perf_counter()
        token = picker.pick(session.advance([token]))
        timing.steps.append(time.perf_counter() - started)
        yield token


def static_cache(model: Any, length: int) -> Any:
    """An empty cache for at least `length` tokens, with its tensors in place.

    The layers make their tensors when they first see keys and values, which must not happen inside
    compiled code. One uncompiled step over one token shows them the sizes, whatever the model.

    Raises:
        LoadError: FL0807, for a model that keeps its state in another way.
    """
    from transformers import StaticCache

    name = type(model).__name__
    if "past_key_values" not in _forward_names(model):
        raise NOT_A_TEXT_MODEL.error(name, found="no past_key_values among its arguments")
    rounded = -(-length // CACHE_STEP) * CACHE_STEP
    try:
        cache = StaticCache(config=model.config, max_cache_len=rounded)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        found = f"no static cache for its layers ({type(error).__name__}: {error})"
        raise NOT_A_TEXT_MODEL.error(name, found=found) from error
    with torch.no_grad():
        _last_logits(model, [0], cache)
    cache.reset()
    return cache


def stop_tokens(model: Any) -> frozenset[int]:
    """The tokens that end a text, by the model's generation configuration."""
    ends: int | list[int] | None = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def _last_logits(model: Any, ids: Sequence[int], cache: Any) -> Tensor:
    """Logits [vocabulary] after the last of the ids; the cache is advanced."""
    extra = {"logits_to_keep": 1} if "logits_to_keep" in _forward_names(model) else {}
    out = model(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, **extra)
    return out.logits[0, -1]


def _forward_names(model: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)
