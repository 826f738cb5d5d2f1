"""Names of what a model takes and gives, and of the dims that vary."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import sympy
from torch import Tensor, nn

from fuseline.artifact.trees import Tree
from fuseline.frontend.captured import Captured, InputKind
from fuseline.ir.core import Func
from fuseline.ir.types import Dim, format_dim


def output_names(tree: Tree) -> list[str]:
    """A name for each leaf of a result: its keys, else ``output`` and its number."""
    found: list[str] = []
    for path in _paths(tree, ()):
        words = [str(word) for word in path]
        found.append(".".join(words if words and not words[0].isdecimal() else ["output", *words]))
    return found


def _paths(tree: Tree, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if tree.kind in ("leaf", "constant"):
        yield path
        return
    keys: Sequence[str | int] = tree.keys or range(len(tree.children))
    for key, child in zip(keys, tree.children, strict=True):
        yield from _paths(child, (*path, key))


def dim_names(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any,
    captured: Captured, func: Func,
) -> dict[str, str]:  # fmt: skip
    """The symbols of a func by the names that ``dynamic_shapes`` gives their dims."""
    users = [
        arg
        for arg, item in zip(func.args, captured.inputs, strict=False)
        if item.kind is InputKind.USER
    ]
    found: dict[str, str] = {}
    specs = list(_specs(model, args, kwargs, shapes))
    for arg, spec in zip(users, specs, strict=False):
        for axis, name in spec.items():
            extent = arg.shape[axis] if axis < len(arg.shape) else 0
            if isinstance(extent, sympy.Symbol) and name not in found.values():
                found.setdefault(str(extent), name)
    return found


def _specs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any
) -> Iterator[dict[int, str]]:
    """For each tensor of a call, in order: the names of its dims by axis."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        given.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    each: list[Any] = [*args, *kwargs.values()]
    named = [*list(given)[: len(args)], *kwargs]
    for number, value in enumerate(each):
        if isinstance(shapes, Mapping):
            spec = cast("Any", shapes).get(named[number]) if number < len(named) else None
        else:
            spec = shapes[number] if shapes is not None and number < len(shapes) else None
        yield from _leaves(value, spec)


def _leaves(value: Any, spec: Any) -> Iterator[dict[int, str]]:
    if isinstance(value, Tensor):
        yield _axes(spec)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(cast("Sequence[Any]", value)):
            own = isinstance(spec, (list, tuple)) and number < len(cast("Any", spec))
            yield from _leaves(inner, cast("Any", spec)[number] if own else None)
    elif isinstance(value, dict):
        for key, inner in cast("dict[Any, Any]", value).items():
            yield from _leaves(
                inner, cast("Any", spec).get(key) if isinstance(spec, dict) else None
            )


def _axes(spec: Any) -> dict[int, str]:
    if isinstance(spec, (list, tuple)):
        spec = dict(enumerate(cast("Sequence[Any]", spec)))
    if not isinstance(spec, Mapping):
        return {}
    found: dict[int, str] = {}
    for axis, dim in cast("Mapping[int, Any]", spec).items():
        name = getattr(dim, "__name__", None)
        if isinstance(name, str) and name.isidentifier():
            found[axis] = name
    return found


def dim_text(extent: Dim, names: Mapping[str, str]) -> str:
    """A dim as a ``dim_param``."""
    if isinstance(extent, int):
        return str(extent)
    symbols: Any = extent.free_symbols
    swap = {s: sympy.Symbol(names[str(s)]) for s in symbols if str(s) in names}
    return format_dim(cast("Any", extent).subs(swap))


__all__ = ["dim_names", "dim_text", "output_names"]
