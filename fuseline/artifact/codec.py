"""Dataclasses as JSON, and back: what comes from a file is held to the types of the fields.

Handles what plans and manifests are made of: integers, strings, booleans, None, element types of
torch, literals, tuples, mappings by string, unions of these, and dataclasses of them. A dataclass
in a union is told from the others by its name, under ``"is"``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import torch

T = TypeVar("T")

NAME = "is"
"""The key of a dataclass's name."""

GREATEST = 2**63 - 1
"""No integer of a file is greater: sizes and offsets are counted in 64 bits."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8),
        *(torch.complex64, torch.complex128),
    )
}


class MalformedError(ValueError):
    """What was read is not of the type that is wanted; the message says where."""


def encode(value: object) -> Any:
    """What JSON takes in the place of a value."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {NAME: type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in cast("list[object]", value)]
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in cast("Mapping[object, object]", value).items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def decode(kind: type[T], value: object, where: str = "it") -> T:
    """The value of a type that JSON holds.

    Raises:
        MalformedError: it holds something else.

    """
    try:
        return cast("T", _decoder(kind)(value))
    except _OddError as error:
        raise MalformedError(f"{where}{error.path} {error.text}") from error


class _OddError(Exception):
    """What is wrong; the path to it grows on the way out."""

    def __init__(self, text: str) -> None:
        self.text, self.path = text, ""

    def at(self, step: str) -> _OddError:
        """The same, one level further out."""
        self.path = step + self.path
        return self


Decoder = Callable[[Any], Any]


@cache
def _decoder(kind: Any) -> Decoder:
    """What turns JSON into values of a type."""
    origin = get_origin(kind)
    if kind is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        return _union(get_args(kind))
    if origin is Literal:
        return _literal(get_args(kind))
    if origin is tuple:
        return _tuple(get_args(kind))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(get_args(kind)[1])
    if dataclasses.is_dataclass(kind):
        return _dataclass(cast("type[Any]", kind))
    return _plain(kind)


def _plain(kind: Any) -> Decoder:
    if kind is torch.dtype:
        return _dtype
    kinds: set[Any] = {int, float} if kind is float else {kind}
    name = "null" if kind is types.NoneType else f"a value of type {kind.__name__}"

    def plain(value: Any) -> Any:
        if type(value) not in kinds:
            raise _wrong(name, value)
        if type(value) is int and abs(value) > GREATEST:
            raise _wrong("an integer of 64 bits", value)
        return value

    return plain


def _dtype(value: Any) -> torch.dtype:
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    raise _wrong("an element type", value)


def _literal(values: tuple[Any, ...]) -> Decoder:
    kinds: set[Any] = {type(each) for each in values}

    def literal(value: Any) -> Any:
        if type(value) in kinds and value in values:
            return value
        raise _wrong(f"one of {', '.join(map(repr, values))}", value)

    return literal


def _union(kinds: tuple[Any, ...]) -> Decoder:
    """Dataclasses by their names, the others by trying: none of them takes what is another's."""
    classes: dict[str, Any] = {
        cast("type", k).__name__: k for k in kinds if dataclasses.is_dataclass(k)
    }
    others = [kind for kind in kinds if not dataclasses.is_dataclass(kind)]
    simple = {kind for kind in others if kind in (int, str, bool, types.NoneType)}
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)

    def union(value: Any) -> Any:
        own = cast("Any", type)(value)
        if own in simple:
            return _decoder(own)(value)
        named: Any = cast("dict[str, Any]", value).get(NAME) if isinstance(value, dict) else None
        if isinstance(named, str) and named in classes:
            return _decoder(classes[named])(value)
        for kind in others:
            with suppress(_OddError):
                return _decoder(kind)(value)
        raise _wrong(names, value)

    return union


def _tuple(kinds: tuple[Any, ...]) -> Decoder:
    each = _decoder(kinds[0]) if kinds[-1] is Ellipsis else None
    several = None if each else tuple(map(_decoder, kinds))

    def decoded(value: Any) -> Any:
        if not isinstance(value, list):
            raise _wrong("a list", value)
        items = cast("list[Any]", value)
        decoders = (each,) * len(items) if each else several or ()
        if len(items) != len(decoders):
            raise _wrong(f"{len(decoders)} items", value)
        found: list[Any] = []
        try:
            for decoder, item in zip(decoders, items, strict=True):
                found.append(decoder(item))
        except _OddError as error:
            raise error.at(f"[{len(found)}]") from None
        return tuple(found)

    return decoded


def _mapping(kind: Any) -> Decoder:
    each = _decoder(kind)

    def mapping(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _wrong("an object", value)
        found: dict[str, Any] = {}
        for key, item in cast("dict[str, Any]", value).items():
            try:
                found[key] = each(item)
            except _OddError as error:
                raise error.at(f"[{key[:60]!r}]") from None
        return found

    return mapping


def _dataclass(kind: type[Any]) -> Decoder:
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    decoders: dict[str, Decoder] = {}

    def decoded(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _wrong(f"a {kind.__name__}", value)
        given = cast("dict[str, Any]", value)
        if given.get(NAME) != kind.__name__:
            raise _wrong(f"a {kind.__name__}", value)
        if given.keys() != names | {NAME}:
            odd = ", ".join(sorted(given.keys() ^ (names | {NAME})))
            raise _OddError(f"lacks, or has beside what it should have: {odd[:200]}")
        if not decoders:  # a class may have itself inside
            decoders.update((name, _decoder(hints[name])) for name in names)
        found: dict[str, Any] = {}
        for name, decoder in decoders.items():
            try:
                found[name] = decoder(given[name])
            except _OddError as error:
                raise error.at(f".{name}") from None
        return kind(**found)

    return decoded


def _wrong(expected: str, value: Any) -> _OddError:
    shown = repr(value)
    return _OddError(f"is {shown[:60]}{'...' * (len(shown) > 60)}, not {expected}")


__all__ = ["DTYPES", "MalformedError", "decode", "encode"]
