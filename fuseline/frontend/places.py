"""Places in the user's source, and names of inputs, as the tracers write them down."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fuseline.ir.core import Loc

_ENTRY = str(Path(__file__).with_name("wrap.py"))
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_SUBSCRIPT = re.compile(r"\._(?:modules|parameters|buffers)\['([^']+)'\]")
_ROOT = re.compile(r"^[LG]\['(\w+)'\]")
_KEYWORD = re.compile(r"^kwargs\['(\w+)'\]")


def value_of(node: fx.Node) -> Any:
    """The fake value of a traced node, under either tracer's name for it."""
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


def place_of(node: fx.Node) -> Loc:
    """The innermost module, and the file and line, that a traced node comes from.

    Lines of torch's own modules are none that a user wrote: the line that calls them counts. Of a
    module of torch's that is compiled by itself there is neither; its class then says what it is.
    """
    known = node.meta.get("loc")
    if isinstance(known, Loc):
        return known
    stack: dict[str, Any] | None = node.meta.get("nn_module_stack")
    module, cls = next(reversed(stack.values())) if stack else ("", "")
    place = _place(str(module), node.meta.get("stack_trace") or "")
    return Loc(_class_name(cls)) if place == Loc() else place


def frames_of(node: fx.Node) -> list[tuple[str, int]]:
    """The files and lines of the calls that led to a traced node, the outermost first."""
    return _frames(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=65536)
def _frames(trace: str) -> list[tuple[str, int]]:
    return [(file, int(line)) for file, line in _FRAME.findall(trace)]


@lru_cache(maxsize=65536)
def _place(module: str, trace: str) -> Loc:
    frames = [frame for frame in _FRAME.findall(trace) if not is_library(frame[0])]
    source = f"{frames[-1][0].rpartition('/')[2]}:{frames[-1][1]}" if frames else ""
    return Loc(tidy(module), source)


def is_library(file: str) -> bool:
    """Whether a file is one of torch's, or where a program is entered."""
    return file == _ENTRY or file.startswith(_TORCH)


def _class_name(cls: object) -> str:
    """Dynamo gives the class, ``torch.export`` its qualified name."""
    return cls.__name__ if isinstance(cls, type) else str(cls).rpartition(".")[2]


@lru_cache(maxsize=65536)
def tidy(source: str) -> str:
    """A tracer's name for a module or tensor as a person would write it.

    ``L['self']._modules['model']._modules['norm']._parameters['weight']`` is ``model.norm.weight``,
    and ``L['kwargs']['past_key_values'].layers[0].keys`` is ``past_key_values.layers[0].keys``.
    """
    text = _ROOT.sub(lambda m: "" if m[1] == "self" else m[1], source)
    text = _SUBSCRIPT.sub(r".\1", text)
    text = _KEYWORD.sub(r"\1", text)
    return text.lstrip(".")
