"""Submodules that run outside compiled graphs, as ``Config(eager=...)`` names them.

While a compiled program runs, such a module has a ``forward`` of its own that Dynamo does not look
into: the graph ends before it and another begins after it. Nothing of that stays with the module,
so that eager runs, copies and pickles of the model are what they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from fuseline import _torch, errors


class Outside:
    """A context in which the named submodules of a target run outside compiled graphs.

    Args:
        target: the module that is compiled, or a function, which has no submodules.
        names: module paths; ``*`` stands for any part of one, as in ``model.layers.*.mlp``.

    Raises:
        UsageError: FL0105, for a name that no submodule has.
    """

    def __init__(self, target: object, names: Sequence[str]) -> None:
        named: list[tuple[str, nn.Module]] = []
        if isinstance(target, nn.Module):
            named = list(cast("Iterable[tuple[str, nn.Module]]", target.named_modules()))[1:]
        modules = dict(named)
        found = {path: modules[path] for name in names for path in _matching(name, modules)}
        self._calls = [(m, _torch.never_compiled(m.forward)) for m in found.values()]
        self._before: list[Any] = []
        self._depth = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth > 1 or not self._calls:
                return
            self._before = [vars(m).get("forward") for m, _ in self._calls]
            for module, call in self._calls:
                vars(module)["forward"] = call

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth or not self._calls:
                return
            for (module, _call), before in zip(self._calls, self._before, strict=True):
                vars(module).pop("forward")
                if before is not None:
                    vars(module)["forward"] = before


def _matching(name: str, modules: dict[str, nn.Module]) -> list[str]:
    paths = [path for path in modules if fnmatchcase(path, name)]
    if paths:
        return paths
    near = get_close_matches(name, modules, n=3) or list(modules)[:3]
    expected = f"a module path such as {' or '.join(near)}" if near else "a module with submodules"
    raise errors.UNKNOWN_MODULE.error(name, where="the option eager", expected=expected)
