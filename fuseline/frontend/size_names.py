"""The names that a user has given to sizes: tracing has symbols of its own for them.

``torch.export.Dim("B")`` says that a dim varies, and what it is called. The exported program calls
it ``s77``; which of its symbols that is follows from where the user has put the name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseline.expressions import is_size_name
from fuseline.frontend.captured import Symbol

Named = Mapping[int, str]
"""Names by dim; -1 for an integer itself."""


def size_names(
    symbols: Sequence[Symbol], traced: Sequence[object], named: Sequence[Named]
) -> dict[str, str]:
    """The user's name of each symbol that has one.

    A name that is none in a program (a keyword), or that two symbols have, is left out: their own
    names are right in any case.

    Args:
        symbols: of the captured program.
        traced: what tracing has for each leaf of a call: a tensor with symbolic sizes, an integer.
        named: for each leaf, the names of its dims; see `given_names`.

    """
    known = {symbol.name for symbol in symbols}
    found: dict[str, str] = {}
    for value, names in zip(traced, named, strict=False):
        for axis, name in names.items():
            own = str(cast("Any", value).shape[axis] if isinstance(value, Tensor) else value)
            if own in known and is_size_name(name) and name not in (known | {"num_workers"}):
                found.setdefault(own, name)
    taken = list(found.values())
    return {own: name for own, name in found.items() if taken.count(name) == 1}


def given_names(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> list[Named]:
    """The names of the dims of each leaf of ``(args, kwargs)``, in the order of the leaves.

    Args:
        model: whose ``forward`` is called.
        args: positional arguments.
        kwargs: keyword arguments.
        dynamic_shapes: as ``torch.export.export`` takes it: by the name of a parameter or by place,
            nested as arguments are, and for a tensor by dim.

    """
    collection = getattr(dynamic_shapes, "dynamic_shapes", None)
    shapes = collection(model, tuple(args), dict(kwargs)) if collection else dynamic_shapes
    parameters = inspect.signature(model.forward).parameters
    if not isinstance(shapes, Mapping):
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = dict(zip(bound, shapes or (), strict=False))
    by_name = cast("Mapping[str, Any]", shapes)
    found: list[Named] = []
    for number, value in enumerate(args):
        found += _leaves(value, _of_place(parameters, by_name, number))
    for name, value in kwargs.items():
        found += _leaves(value, _of_keyword(parameters, by_name, name))
    return found


def _of_place(
    parameters: Mapping[str, inspect.Parameter], shapes: Mapping[str, Any], number: int
) -> Any:
    for place, parameter in enumerate(parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return _child(shapes.get(parameter.name), number - place, None)
        if place == number:
            return shapes.get(parameter.name)
    return None


def _of_keyword(
    parameters: Mapping[str, inspect.Parameter], shapes: Mapping[str, Any], name: str
) -> Any:
    if name in parameters or name in shapes:
        return shapes.get(name)
    others = [p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    return _child(shapes.get(others[0]), 0, name) if others else None


def _leaves(value: object, shapes: Any) -> Iterator[Named]:
    """The names of each leaf of a value, whose nesting the shapes follow."""
    children = pytree.tree_flatten(value, is_leaf=lambda item: item is not value)[0]
    if len(children) == 1 and children[0] is value:
        yield _names(shapes)
        return
    keys: Sequence[Any] = list(cast("Any", value)) if isinstance(value, Mapping) else ()
    for number, child in enumerate(children):
        yield from _leaves(child, _child(shapes, number, keys[number] if keys else None))


def _child(shapes: Any, number: int, key: Any) -> Any:
    """What is said of one part of a container."""
    if isinstance(shapes, Mapping):
        known = cast("Mapping[Any, Any]", shapes)
        return known.get(key, known.get(number))
    if isinstance(shapes, (list, tuple)) and number < len(cast("Sequence[Any]", shapes)):
        return cast("Sequence[Any]", shapes)[number]
    return None


def _names(shapes: Any) -> Named:
    """The names of the dims of one tensor; or of an integer, that of its own."""
    if isinstance(shapes, Mapping):
        dims = list(cast("Mapping[int, Any]", shapes).items())
    elif isinstance(shapes, (list, tuple)):
        dims = list(enumerate(cast("Sequence[Any]", shapes)))
    else:
        dims = [(-1, shapes)]
    found = {axis: getattr(dim, "__name__", None) for axis, dim in dims}
    return {axis: name for axis, name in found.items() if isinstance(name, str)}


__all__ = ["given_names", "size_names"]
