"""What the attributes of an op may be, read from its declaration: text is held to that.

An op that Python makes is checked by a type checker; what stands in a text is checked here, so that
`infer`, and the passes behind it, see attributes of the types that they were written for.
"""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, cast

from fuseline.ir.core import Op


@functools.cache
def attribute_types(kind: type[Op]) -> Mapping[str, Any]:
    """The declared types of an op's attributes; `object` for one that only its author can read."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        module = vars(sys.modules[base.__module__])
        for name, annotation in vars(base).get("__annotations__", {}).items():
            try:
                found[name] = eval(annotation, module) if type(annotation) is str else annotation
            except Exception:
                found[name] = object
    return {s.name: found.get(s.name, object) for s in kind.fields if s.kind == "attribute"}


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a declared type: a class, a union, a literal, or a tuple of one."""
    if kind in (object, Any):
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin is tuple:
        items = cast("tuple[object, ...]", value)
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in items)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else origin or kind)


def described(kind: Any) -> str:
    """A declared type in the words of a message."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(described, inner)))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return "a tuple" if inner[0] is object else f"a tuple, each {described(inner[0])}"
    if kind in (None, types.NoneType):
        return "none"
    return _WORDS.get(getattr(kind, "__name__", ""), str(getattr(kind, "__name__", kind)))


_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "Expr": "a size",
    "DType": "an element type",
    "TensorType": "a tensor type",
    "Func": "a func",
}


__all__ = ["attribute_types", "described", "fits"]
