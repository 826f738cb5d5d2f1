"""Dataclasses as JSON, and back: what comes from a file is held to the types of the fields.

Handles what plans and manifests are made of: integers, strings, booleans, None, element types of
torch, literals, tuples, mappings by string, unions of these, and dataclasses of them. A dataclass
in a union is told from the others by its name, under ``"is"``; so is a number that JSON has no word
for (NaN, and the infinities).
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import torch

T = TypeVar("T")

NAME = "is"
"""The key of a dataclass's name."""

GREATEST = 2**63 - 1
"""No integer of a file is greater: sizes and offsets are counted in 64 bits."""

MOST_JSON = 64 << 20
MOST_VALUES = 4_000_000
"""Bytes and values of one text: what is made of them takes some hundred bytes for each."""

MOST_NAME = 4096
"""Characters of a name in an object."""

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


def parse(data: bytes, where: str = "it") -> Any:
    """The values in a text of JSON: UTF-8, no name twice in an object, no number without an end.

    Raises:
        MalformedError: it is no such text, or too much of one.

    """
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if len(data) > MOST_JSON or values > MOST_VALUES:
        raise MalformedError(f"{where} has {len(data)} bytes of JSON with about {values} values")
    try:
        text = data.decode()
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object with one name twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


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
    if isinstance(value, float) and not math.isfinite(value):
        return {NAME: "float", "text": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def decode(kind: type[T], value: object, where: str = "it") -> T:
    """The value of a type that JSON holds.

    Raises:
        MalformedError: it holds something else.

    """
    return _decode(kind, value, where)


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return _union((bool, int, float, str, types.NoneType), value, where)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, where)
    if origin is Literal:
        if value in get_args(kind) and type(value) in {type(each) for each in get_args(kind)}:
            return value
        raise _wrong(where, f"one of {', '.join(map(repr, get_args(kind)))}", value)
    if origin is tuple:
        return _tuple(get_args(kind), value, where)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(get_args(kind)[1], value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(cast("type[Any]", kind), value, where)
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is torch.dtype:
        if isinstance(value, str) and value in DTYPES:
            return DTYPES[value]
        raise _wrong(where, "an element type", value)
    if kind is types.NoneType:
        if value is None:
            return None
        raise _wrong(where, "null", value)
    if kind is float:
        return _float(value, where)
    if type(value) is not kind:
        raise _wrong(where, f"a value of type {kind.__name__}", value)
    if kind is int and abs(value) > GREATEST:
        raise _wrong(where, "an integer of 64 bits", value)
    if kind is str and not is_text(value):
        raise _wrong(where, "a text of Unicode", value)
    return value


def _float(value: Any, where: str) -> float:
    if isinstance(value, dict):
        text = cast("dict[str, Any]", value).get("text")
        if value == {NAME: "float", "text": text} and text in ("nan", "inf", "-inf"):
            return float(text)
    elif type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise _wrong(where, "a number", value)


def is_text(value: str) -> bool:
    """Whether every character can be written: JSON may have halves of some."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value).get(NAME)
        for kind in kinds:
            if dataclasses.is_dataclass(kind) and cast("type[Any]", kind).__name__ == named:
                return _decode(kind, value, where)
    for kind in kinds:
        if not dataclasses.is_dataclass(kind):
            try:
                return _decode(kind, value, where)
            except MalformedError:
                continue
    names = [getattr(kind, "__name__", str(kind)) for kind in kinds]
    raise _wrong(where, " or ".join(names), value)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    items = cast("list[Any]", value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise _wrong(where, f"{len(kinds)} items", value)
    pairs = zip(kinds, items, strict=True)
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))


def _mapping(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    items = cast("dict[str, Any]", value).items()
    for key, _ in items:
        if len(key) > MOST_NAME or not is_text(key):
            raise _wrong(f"a name in {where}", f"a text of at most {MOST_NAME} characters", key)
    return {key: _decode(kind, item, f"{where}[{key!r}]") for key, item in items}


def _dataclass(kind: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, f"a {kind.__name__}", value)
    given = dict(cast("dict[str, Any]", value))
    if given.pop(NAME, None) != kind.__name__:
        raise _wrong(where, f"a {kind.__name__}", value)
    hints = _hints(kind)
    if given.keys() != hints.keys():
        odd = ", ".join(map(repr, sorted(given.keys() ^ hints.keys())[:8]))
        raise MalformedError(f"{where} lacks, or has beside what it should have: {odd[:200]}")
    found = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in given.items()}
    return kind(**found)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields by name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _wrong(where: str, expected: str, value: object) -> MalformedError:
    shown = reprlib.repr(value)
    return MalformedError(f"{where} is {shown[:60]}{'...' * (len(shown) > 60)}, not {expected}")


__all__ = ["DTYPES", "MalformedError", "decode", "encode", "is_text", "parse"]
