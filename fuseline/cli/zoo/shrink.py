"""Tiny configurations of any class of transformers, by looking at its fields.

A configuration names its sizes by fields, which `sizes` knows; what it says layer by layer (lists
as long as it has layers) is cut to the shortest lists that hold each kind of layer once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, cast

from fuseline.cli.zoo.sizes import EXCEPTIONS, LAYERS, PARTS, Setting, Sizes, size

MOST_KINDS = 4
"""Layers of a model that has more kinds of them than this."""

_SET_WHERE_NONE = re.compile(
    r"num_key_value_heads|num_kv_heads|head_dim|.*experts|num_experts_per_tok|n_group|topk_group"
    r"|.*_token_id|moe_latent_size|moe_intermediate_size|top_k_experts|indexer_.*|ple_embed_dim"
    r"|num_layers_per_stack"
)
"""Fields that get a size even where their default is None: others mean "derive it" by that."""

_SET_WHERE_ZERO = re.compile(r".*shared_(experts?|intermediate_size)|.*_token_id")
"""Fields that get a size even where their default is 0, which switches a feature off."""

_GROWS = re.compile(r"(.*_)?num_experts|moe_top_?k")
"""Fields whose default may be below their size: one expert is no mixture."""


def shrink(kind: type[Any], sizes: Sizes, more: Mapping[str, Any] | None = None) -> Any:
    """A tiny configuration of a class.

    Args:
        kind: the class of the configuration.
        sizes: the sizes to give it.
        more: what the configuration that it is a part of asks of it.

    Raises:
        Exception: whatever the class raises, where sizes do not fit one another.
    """
    wanted = PARTS.get(kind.__name__, {})
    plain = kind(**wanted)
    kinds: dict[str, type[Any]] = {n: type(getattr(plain, n)) for n in sub_configs(plain)}
    parts = {name: shrink(part, sizes, wanted.get(name)) for name, part in kinds.items()}
    return kind(**{**settings(kind, plain, sizes), **parts, **(more or {})})


def settings(kind: type[Any], plain: Any, sizes: Sizes) -> dict[str, Any]:
    """What to give to a class in place of its defaults; ``plain`` is a configuration with these."""
    given: dict[str, Any] = {}
    if "kv_lora_rank" in _fields(kind):  # each head has keys of its own, made of the latent
        sizes = dataclasses.replace(sizes, kv_heads=sizes.heads)
    for name, default in _fields(kind).items():
        value = _fitted(name, size(name, sizes), default)
        if value is not None:
            given[name] = value
    depth = _depth_field(kind)
    lists = per_layer(plain, getattr(plain, depth)) if depth else {}
    if depth and lists:
        given |= lists | {depth: len(next(iter(lists.values())))}
    return {**given, **EXCEPTIONS.get(kind.__name__, {})}


def per_layer(plain: Any, layers: int) -> dict[str, list[Any]]:
    """The lists of a configuration that speak of each layer, cut so that each kind is there once.

    Lists of sizes are left out: the class makes them anew.
    """
    lists = {
        name: list(cast("list[Any]", value))
        for name, value in settings_of(plain).items()
        if isinstance(value, list | tuple) and not name.startswith("_")
    }
    lists = {name: value for name, value in lists.items() if len(value) == layers}
    lists = {name: value for name, value in lists.items() if not _sizes(value)}
    if layers < LAYERS or not lists:
        return {}
    kinds: dict[str, int] = {}
    for layer in range(layers):
        kinds.setdefault(repr([value[layer] for value in lists.values()]), layer)
    kept = list(kinds.values())[:MOST_KINDS]
    kept += [kept[-1]] * (LAYERS - len(kept))
    return {name: [value[layer] for layer in kept] for name, value in lists.items()}


def settings_of(plain: object) -> dict[str, Any]:
    """The attributes of a configuration."""
    return vars(plain)


def sub_configs(plain: Any) -> list[str]:
    """The fields of a configuration that hold configurations."""
    return [name for name in plain.sub_configs if getattr(plain, name, None) is not None]


def _fields(kind: type[Any]) -> Mapping[str, Any]:
    """The settings of a class, with their defaults."""
    if not dataclasses.is_dataclass(kind):
        return {}
    return {
        item.name: None if item.default is dataclasses.MISSING else item.default
        for item in dataclasses.fields(kind)
        if item.init
    }


def _depth_field(kind: type[Any]) -> str:
    """The field that holds the number of layers; empty where there is none."""
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
    return next((name for name in names if name in _fields(kind)), "")


def _fitted(name: str, value: Setting | None, default: Any) -> Setting | None:
    """The size that stands in place of a default; None where the default stays.

    Text and lists are not replaced, and little grows.
    """
    if value is None or isinstance(default, str | list | tuple):
        return None
    if default is None:
        return value if _SET_WHERE_NONE.fullmatch(name) else None
    if isinstance(value, bool) or isinstance(default, bool):
        return value if isinstance(value, bool) and isinstance(default, bool) else None
    if default == 0:
        return value if _SET_WHERE_ZERO.fullmatch(name) else None
    grows = isinstance(value, float) or default < 0 or _GROWS.fullmatch(name)
    return value if grows else min(value, default)


def _sizes(values: list[Any]) -> bool:
    return any(isinstance(v, int) and not isinstance(v, bool) and v > 1 for v in values)
