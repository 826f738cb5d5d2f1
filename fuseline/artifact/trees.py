"""The nesting of what a call takes and gives, without the types that only the exporter knows.

Tuples, lists and dicts come back as they were. Any other container (an output class of a model, a
cache) becomes a record: its leaves by name, where it has names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

Kind = Literal["leaf", "constant", "tuple", "list", "dict", "record", "names"]


@dataclass(frozen=True)
class Tree:
    """One node.

    Attributes:
        kind: ``leaf``; ``constant``, which is the same in every call; or the container. What a call
            gives by keyword is a ``dict``, or ``names``: those may be given by place, too.
        keys: of a dict, a record or names; none, where a record has no names.
        children: in the order of the leaves.
        value: of a constant.
    """

    kind: Kind = "leaf"
    keys: tuple[str, ...] = ()
    children: tuple[Tree, ...] = ()
    value: bool | int | float | str | None = None

    @property
    def leaves(self) -> int:
        """How many there are."""
        return 1 if self.kind == "leaf" else sum(child.leaves for child in self.children)

    def __str__(self) -> str:
        if self.kind == "leaf":
            return "*"
        if self.kind == "constant":
            return repr(self.value)
        inner = [str(child) for child in self.children]
        if self.keys:
            inner = [f"{key}: {text}" for key, text in zip(self.keys, inner, strict=True)]
        ends = {"tuple": "()", "list": "[]"}.get(self.kind, "{}")
        return f"{ends[0]}{', '.join(inner)}{ends[1]}"


class Record(dict[str, Any]):
    """A result with names: by key, by attribute, or by place."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the result has no {name!r}, but {', '.join(self)}") from None

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def leaves_of_call(
    takes: Tree, args: Sequence[object], kwargs: Mapping[str, object]
) -> Iterator[object]:
    """The leaves of a call's arguments.

    Raises:
        ValueError: they have another nesting, or are too many.

    """
    named = takes.children[1]
    if args and named.kind == "names":
        if len(args) > len(named.keys):
            raise ValueError(f"{len(args)} in the place of {len(named.keys)}: {named}")
        by_place = dict(zip(named.keys, args, strict=False))
        if twice := sorted(by_place.keys() & kwargs.keys()):
            raise ValueError(f"by place and by name: {', '.join(twice)}")
        args, kwargs = (), {**by_place, **kwargs}
    return flatten(takes, (tuple(args), kwargs))


def flatten(tree: Tree, value: object) -> Iterator[object]:
    """The leaves of a value that has this nesting.

    Raises:
        ValueError: it has another one.

    """
    if tree.kind == "leaf":
        yield value
        return
    if tree.kind == "constant":
        if type(value) is not type(tree.value) or value != tree.value:
            raise ValueError(f"{str(value)[:60]!r} in the place of {tree.value!r}")
        return
    for child, item in zip(tree.children, _items(tree, value), strict=True):
        yield from flatten(child, item)


def _items(tree: Tree, value: object) -> Sequence[object]:
    if tree.keys:
        if not isinstance(value, Mapping):
            return (
                [getattr(value, key) for key in tree.keys] if _has(value, tree.keys) else _no(tree)
            )
        constants = {
            key: child.value
            for key, child in zip(tree.keys, tree.children, strict=True)
            if child.kind == "constant"  # it may be left out
        }
        given = {**constants, **cast("Mapping[str, object]", value)}
        if set(given) != set(tree.keys):
            odd = ", ".join(sorted(map(str, set(given) ^ set(tree.keys))))
            raise ValueError(f"missing, or unknown: {odd}")
        return [given[key] for key in tree.keys]
    if tree.kind in ("dict", "names") and isinstance(value, Mapping) and not value:
        return []
    if not isinstance(value, tuple | list):
        _no(tree)
    items = cast("Sequence[object]", value)
    if len(items) != len(tree.children):
        raise ValueError(f"{len(items)} in the place of {len(tree.children)}: {tree}")
    return items


def _has(value: object, keys: Sequence[str]) -> bool:
    return all(hasattr(value, key) for key in keys)


def _no(tree: Tree) -> Any:
    raise ValueError(f"something else in the place of {tree}")


def unflatten(tree: Tree, leaves: Iterator[object]) -> Any:
    """The value with this nesting."""
    if tree.kind == "leaf":
        return next(leaves)
    if tree.kind == "constant":
        return tree.value
    items = [unflatten(child, leaves) for child in tree.children]
    if tree.kind == "list":
        return items
    if tree.kind in ("dict", "names"):
        return dict(zip(tree.keys, items, strict=True))
    if tree.kind == "record" and tree.keys:
        return Record(zip(tree.keys, items, strict=True))
    return tuple(items)


__all__ = ["Kind", "Record", "Tree", "flatten", "leaves_of_call", "unflatten"]
