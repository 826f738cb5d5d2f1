"""What the benchmark of numbers is run on: the families of the tests, and two models of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from tests.e2e import test_adapters, test_latent_cache
from tests.e2e.families import Family, static_cache, tokens
from tests.exporting.test_families import cases

Call: TypeAlias = "Callable[[Any, Callable[..., Any]], None]"
"""Calls a compiled form of a model, or the model itself; it is given the model for its sizes."""


@dataclass(frozen=True)
class Subject:
    """A model, how it is called, and what it is compiled with.

    Attributes:
        name: in the results.
        build: the model in a type.
        calls: the first that eager can do is made.
        options: of the compilation.
    """

    name: str
    build: Callable[[torch.dtype], nn.Module]
    calls: Sequence[tuple[str, Call]]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def subjects() -> Iterator[Subject]:
    """All of them."""
    for case in cases():
        yield Subject(str(case.id), _built(cast("Family", case.values[0])), CALLS)
    yield Subject("adapters", test_adapters.adapted, (("decode", _adapted),))
    yield Subject(
        "latent_cache", test_latent_cache.build, (("decode", _latent),), {"cache": "latent"}
    )


def _built(family: Family) -> Callable[[torch.dtype], nn.Module]:
    def build(dtype: torch.dtype) -> nn.Module:
        model = cast("Any", family.build(dtype))
        if hasattr(model.config, "n_routed_experts"):
            model.set_experts_implementation("batched_mm")
        return model

    return build


def _prefill(model: Any, program: Callable[..., Any]) -> None:
    del model
    program(tokens(2, 7), use_cache=False)


def _decode(model: Any, program: Callable[..., Any]) -> None:
    cache = static_cache(model)
    program(tokens(2, 7), past_key_values=cache, use_cache=True)
    program(tokens(2, 1, seed=2), past_key_values=cache, use_cache=True)


def _adapted(model: Any, program: Callable[..., Any]) -> None:
    cast("Any", test_adapters.generate)(program, model, torch.tensor([2, 0]), 1)


def _latent(model: Any, program: Callable[..., Any]) -> None:
    for x, positions in test_latent_cache.calls(model.q.weight.dtype)[:2]:
        program(x, positions)


CALLS = (("decode", _decode), ("prefill", _prefill))

__all__ = ["Call", "Subject", "subjects"]
