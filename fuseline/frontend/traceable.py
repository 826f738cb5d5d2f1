"""Experts of transformers models, set to a form that can be traced while a program runs.

transformers reads from a model's configuration how experts are computed. ``eager`` is a loop over
the experts that were chosen, which no tracer follows. While a compiled program runs, such
configurations name a form with the same numbers and no loop; guards are checked then too and see
the same. Nothing of that stays with the configuration: eager runs are what they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

_SETTING = "_experts_implementation_internal"  # what `set_experts_implementation` sets
_LOOP = "eager"
_ALIGNMENT = 16
"""torch's grouped product takes bfloat16 rows of whole multiples of this many bytes only."""


class Traceable:
    """A context in which the experts of a target are computed without a loop.

    Args:
        target: the module that is compiled, or a function, whose models are not known.
    """

    def __init__(self, target: object) -> None:
        self._target = target
        self._before: list[tuple[dict[str, Any], str]] = []
        self._depth = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth > 1 or not isinstance(self._target, nn.Module):
                return
            for settings, module in _loops(self._target):
                self._before.append((settings, settings[_SETTING]))
                settings[_SETTING] = _form(module)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth:
                return
            for settings, before in self._before:
                settings[_SETTING] = before
            self._before.clear()


def _loops(target: nn.Module) -> Iterator[tuple[dict[str, Any], nn.Module]]:
    """The configurations that ask for the loop, each once, with a module that has them."""
    seen: set[int] = set()
    for module in target.modules():
        config = cast("object", vars(module).get("config"))
        settings = getattr(config, "__dict__", None)
        found = cast("dict[str, Any]", settings if isinstance(settings, dict) else {})
        if id(found) not in seen and found.get(_SETTING) == _LOOP:
            seen.add(id(found))
            yield found, module


def _form(module: nn.Module) -> str:
    """Products grouped by expert where torch has them for such matrices, else batched ones."""
    for parameter in module.parameters():
        rows = [n * parameter.element_size() % _ALIGNMENT for n in parameter.shape[1:]]
        if parameter.dim() == 3 and parameter.dtype is torch.bfloat16 and any(rows):
            return "batched_mm"
    return "grouped_mm"
