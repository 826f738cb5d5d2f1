"""Names from the root: what Dynamo calls after one frame, as the compiled module's user knows it.

After a graph break, and beside a module that runs outside compiled graphs, Dynamo traces the
``forward`` of submodules by themselves. It then writes ``L['self'].norm`` for ``layers.3.norm``.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import fx, nn

from fuseline import _torch
from fuseline.frontend.places import tidy

_LOCAL = re.compile(r"^L\['(\w+)'\]")
_ITEM = re.compile(r"""^\[(\d+|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\]""")
_ARGUMENT = re.compile(r"^args\[(\d+)\]")


class Names:
    """The names of the modules of a target, and of the arguments that it is called with."""

    def __init__(self, target: object) -> None:
        self.target = target
        self.arguments, self.others = _positional(target)

    def rename(self, module: fx.GraphModule) -> None:
        """Note names from the root in a graph that Dynamo is handing over."""
        frame = _torch.traced_frame()
        if frame.get("self") is self.target:  # our entry: its paths begin at the root
            for node in _placeholders(module):
                node.meta["name"] = self._argument(tidy(_torch.source_name(node)))
        elif isinstance(self.target, nn.Module):
            self._rename_all(module, _Frame(frame, _paths(self.target)))

    def _argument(self, name: str) -> str:
        found = _ARGUMENT.match(name)
        place = int(found[1]) if found else 0
        if found is None or (place >= len(self.arguments) and not self.others):
            return name
        named = self.arguments[place : place + 1] or [
            f"{self.others}[{place - len(self.arguments)}]"
        ]
        return named[0] + name[found.end() :]

    def _rename_all(self, module: fx.GraphModule, frame: _Frame) -> None:
        around = frame.module()
        for node in module.graph.nodes:
            if node.op == "placeholder":
                node.meta["name"] = frame.named(_torch.source_name(node))
                continue
            stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
            renamed = {key: (frame.named(name), cls) for key, (name, cls) in stack.items()}
            node.meta["nn_module_stack"] = around | renamed


class _Frame:
    """The locals of a frame, and the paths of modules by the ``id`` of their ``__dict__``."""

    def __init__(self, values: Mapping[str, object], paths: Mapping[int, str]) -> None:
        self.values = values
        self.paths = paths

    def module(self) -> dict[str, tuple[str, type]]:
        """The module whose method the frame runs, as an entry of a module stack."""
        owner = self.values.get("self")
        path = self._path(owner)
        return {} if path is None else {"frame": (path, type(owner))}

    def named(self, source: str) -> str:
        """A name of Dynamo's, from the root where it leads through a module of the root's."""
        local = _LOCAL.match(source)
        if local is None:
            return tidy(source)
        value, rest = self.values.get(local[1]), source[local.end() :]
        while (path := self._path(value)) is None:
            item = _ITEM.match(rest)
            held = _items(value)
            key: object = ast.literal_eval(item[1]) if item else None
            if item is None or key not in held:
                return tidy(source)
            value, rest = held[key], rest[item.end() :]
        return tidy(path + rest)

    def _path(self, value: object) -> str | None:
        return self.paths.get(id(vars(value))) if isinstance(value, nn.Module) else None


def _placeholders(module: fx.GraphModule) -> Iterable[fx.Node]:
    return (node for node in module.graph.nodes if node.op == "placeholder")


def _paths(root: nn.Module) -> dict[int, str]:
    """Two views of one module share its ``__dict__``."""
    named = cast("Iterable[tuple[str, nn.Module]]", root.named_modules())
    return {id(vars(module)): path for path, module in named}


def _items(value: object) -> Mapping[object, object]:
    """What a container holds, by key or place."""
    if isinstance(value, dict):
        return cast("dict[object, object]", value)
    return (
        dict(enumerate(cast("Sequence[object]", value))) if isinstance(value, (list, tuple)) else {}
    )


def _positional(target: object) -> tuple[Sequence[str], str]:
    """The names of the parameters that positional arguments go to, in order, and of the one that
    takes all others.
    """
    function: Any = target.forward if isinstance(target, nn.Module) else target
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return (), ""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    return [p.name for p in parameters if p.kind in kinds], others[0] if others else ""
