"""Experts of transformers models, set to a form that can be traced while a program runs.

transformers reads from a model's configuration how experts are computed. ``eager`` is a loop over
the experts that were chosen, which no tracer follows. While a compiled program runs, such
configurations name a form with the same numbers and no loop; guards are checked then too and see
the same. Nothing of that stays with the configuration: eager runs are what they were.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

_SETTING = "_experts_implementation_internal"  # what `set_experts_implementation` sets
_LOOP = "eager"
_ALIGNMENT = 16
"""torch's grouped product takes bfloat16 rows of whole multiples of this many bytes only."""


@dataclass
class _Switched:
    """A configuration that programs are running under, and how many."""

    settings: dict[str, Any]
    programs: int = 0


_lock = threading.Lock()
_switched: dict[int, _Switched] = {}
"""The configurations that are switched now: several programs may share one."""


class Traceable:
    """A context in which the experts of a target are computed without a loop.

    Args:
        target: the module that is compiled, or a function, whose models are not known.
    """

    def __init__(self, target: object) -> None:
        self._target = target
        self._entered = threading.local()

    def __enter__(self) -> None:
        taken: list[_Switched] = []
        if self._forms:
            with _lock:
                taken = [s for settings, form in self._forms if (s := _switch(settings, form))]
        self._stack.append(taken)

    def __exit__(self, *_: object) -> None:
        taken = self._stack.pop()
        if not taken:
            return
        with _lock:
            for item in taken:
                item.programs -= 1
                if not item.programs:
                    item.settings[_SETTING] = _LOOP
                    del _switched[id(item.settings)]

    @property
    def _stack(self) -> list[list[_Switched]]:
        """What the calls of this thread have switched, the innermost last."""
        kept = vars(self._entered)
        return cast("list[list[_Switched]]", kept.setdefault("stack", []))

    @cached_property
    def _forms(self) -> list[tuple[dict[str, Any], str]]:
        """The configurations that say how experts are computed, each with a form to trace."""
        if not isinstance(self._target, nn.Module):
            return []
        found: dict[int, tuple[dict[str, Any], str]] = {}
        for module in self._target.modules():
            config = cast("object", vars(module).get("config"))
            settings = cast("dict[str, Any]", getattr(config, "__dict__", {}))
            if _SETTING in settings and id(settings) not in found:
                found[id(settings)] = (settings, _form(module))
        return list(found.values())


def _switch(settings: dict[str, Any], form: str) -> _Switched | None:
    """Count one more program under a configuration; None where that asks for no loop."""
    item = _switched.get(id(settings))
    if item is None:
        if settings[_SETTING] != _LOOP:
            return None
        settings[_SETTING] = form
        item = _switched[id(settings)] = _Switched(settings)
    item.programs += 1
    return item


def _form(module: nn.Module) -> str:
    """Products grouped by expert where torch has them for such matrices, else batched ones."""
    for owner in module.modules():
        if isinstance(owner, nn.Conv1d):
            continue
        for parameter in owner.parameters(recurse=False):
            rows = [n * parameter.element_size() % _ALIGNMENT for n in parameter.shape[1:]]
            if parameter.dim() == 3 and parameter.dtype is torch.bfloat16 and any(rows):
                return "batched_mm"
    return "grouped_mm"
