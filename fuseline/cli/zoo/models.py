"""Tiny seeded models by the name of an architecture, in the first sizes that their class takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fuseline.cli.huggingface import require_transformers
from fuseline.cli.zoo.shrink import settings_of, shrink, sub_configs
from fuseline.cli.zoo.sizes import ALTERNATIVES, FIRST_PLAIN_TOKEN, VOCABULARY, Sizes
from fuseline.cli.zoo.worker import one_line
from fuseline.debug.oracle import tensors

_STATES = ("past_key_values", "cache_params", "state")
"""What models call the argument, and the output, that carries what they have seen."""


class NotConfigured(Exception):
    """No sizes were found that an architecture takes; says why."""


@dataclass(frozen=True)
class Built:
    """A model that runs.

    Attributes:
        model: in float32 and eval mode.
        state: the name of the argument that carries what it has seen; empty for none.
        structures: of ``moe`` and ``mla``, what it has.
    """

    model: nn.Module
    state: str
    structures: tuple[str, ...]

    def __call__(self, program: Any, ids: Tensor) -> Tensor:
        """The logits of a prefill by this model, or what was compiled of it."""
        return logits(program(input_ids=ids, **self.without_state))

    @property
    def without_state(self) -> Mapping[str, bool]:
        """The arguments that keep a model from making a cache."""
        return {"use_cache": False} if takes(self.model, "use_cache") else {}


def names() -> tuple[str, ...]:
    """Every architecture that transformers has for causal language models."""
    transformers = require_transformers()
    return tuple(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(name: str) -> Built:
    """A tiny model of an architecture.

    Raises:
        NotConfigured: with the error of the first sizes, where none would do.
    """
    first: Exception | None = None
    for sizes in ALTERNATIVES:
        try:
            return _built(name, sizes)
        except Exception as error:  # whatever a class raises at sizes that do not fit
            first = first or error
    assert first is not None, "there are sizes to try"
    raise NotConfigured(one_line(first)) from (first.__cause__ or first)


def _built(name: str, sizes: Sizes) -> Built:
    transformers = require_transformers()
    kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[transformers.CONFIG_MAPPING[name]]
    config = shrink(_own_config(transformers.CONFIG_MAPPING[name], kind), sizes)
    cast("Any", torch).manual_seed(0)
    model = cast("nn.Module", kind._from_config(config)).float().eval()
    _stir(model)
    accepted = inspect.signature(model.forward).parameters
    state = next((s for s in _STATES if s in accepted), "")
    built = Built(model, state if takes(model, "use_cache") else "", structures(model))
    with torch.no_grad():
        built(model, tokens(2, 5))
    return built


def _own_config(config: type[Any], model: Any) -> type[Any]:
    """The class of the model's configuration; where it is a part of the named one, that part's."""
    own = model.config_class
    if own is config or issubclass(config, own):
        return config
    plain = config()
    parts: list[type[Any]] = [type(getattr(plain, part)) for part in sub_configs(plain)]
    return next((part for part in parts if issubclass(part, own)), config)


def _stir(model: nn.Module) -> None:
    """Give norms and biases weights that differ from one another: many begin as ones or zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and (parameter.dim() == 1 or "norm" in name):
                parameter.add_(torch.randn_like(parameter) * 0.1)


def structures(model: nn.Module) -> tuple[str, ...]:
    """Of routed experts and latent attention, what a model has."""
    settings = list(_settings(cast("Any", model).config))
    experts = any(
        name.endswith("experts") and "shared" not in name and isinstance(value, int) and value > 1
        for name, value in settings
    )
    held = any("expert" in name or "router" in name for name, _ in model.named_parameters())
    latent = any(name == "kv_lora_rank" and value for name, value in settings)
    return ("moe",) * (experts and held) + ("mla",) * latent


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    """The settings of a configuration, and of those in it."""
    yield from settings_of(config).items()
    for part in sub_configs(config):
        yield from settings_of(getattr(config, part)).items()


def takes(model: nn.Module, name: str) -> bool:
    """Whether a model takes an argument of a name, be it through ``**kwargs``."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def logits(output: Any) -> Tensor:
    """The logits in what a model returns."""
    found = getattr(output, "logits", None)
    if found is None:
        found = next(t for t in tensors(output) if t.is_floating_point())
    return cast("Tensor", found)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Seeded token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_PLAIN_TOKEN, VOCABULARY, shape, generator=generator)
