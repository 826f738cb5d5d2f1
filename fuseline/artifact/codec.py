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
from collections.abc import Callable, Mapping
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
    try:
        return cast("T", _reader(kind)(value))
    except _WrongError as error:
        place = where + "".join(reversed(error.path))
        raise MalformedError(f"{place} {error.said}") from error


class _WrongError(Exception):
    """What is wrong, and where: the innermost place first."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said
        self.path: list[str] = []


Reader = Callable[[Any], Any]


@cache
def _reader(kind: Any) -> Reader:
    """What reads values of a type: made once, as a file has many thousands of them."""
    origin = get_origin(kind)
    if kind is Any:
        return _union((bool, int, float, str, types.NoneType))
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
    return _PLAIN[kind]


def _is(value: Any, kind: type) -> bool:
    return type(value) is kind


def _literal(words: tuple[Any, ...]) -> Reader:
    expected = f"one of {', '.join(map(repr, words))}"

    def read(value: Any) -> Any:
        if type(value) is not str or value not in words:
            raise _wrong(expected, value)
        return value

    return read


def _int(value: Any) -> int:
    if type(value) is not int or not -GREATEST <= value <= GREATEST:
        raise _wrong("an integer of 64 bits", value)
    return value


def _str(value: Any) -> str:
    if type(value) is not str or not is_text(value):
        raise _wrong("a text", value)
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong("true or false", value)
    return value


def _none(value: Any) -> None:
    if value is not None:
        raise _wrong("null", value)


def _dtype(value: Any) -> torch.dtype:
    if type(value) is not str or value not in DTYPES:
        raise _wrong("an element type", value)
    return DTYPES[value]


def _float(value: Any) -> float:
    if _is(value, dict):
        text = cast("dict[str, Any]", value).get("text")
        if value == {NAME: "float", "text": text} and text in ("nan", "inf", "-inf"):
            return float(text)
    elif type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise _wrong("a number", value)


_PLAIN: dict[Any, Reader] = {
    int: _int,
    str: _str,
    bool: _bool,
    float: _float,
    types.NoneType: _none,
    torch.dtype: _dtype,
}


def is_text(value: str) -> bool:
    """Whether every character can be written: JSON may have halves of some."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _union(kinds: tuple[Any, ...]) -> Reader:
    """By the type that JSON gives, and of objects by their name."""
    named: dict[str, Any] = {}
    for kind in kinds:
        if dataclasses.is_dataclass(kind):
            named[cast("type[Any]", kind).__name__] = kind
    by_type: dict[type, Any] = {k: k for k in kinds if k in (bool, int, str, float, types.NoneType)}
    if float in kinds:
        by_type = {int: float, dict: float, **by_type}
    for kind in kinds:
        origin = get_origin(kind)
        if origin is tuple:
            by_type[list] = kind
        elif origin is Literal:
            by_type[str] = kind
    expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)

    def read(value: Any) -> Any:
        kind = by_type.get(value.__class__)
        if named and _is(value, dict):
            name = cast("dict[str, Any]", value).get(NAME)
            kind = named.get(name) if type(name) is str else None
        if kind is None:
            raise _wrong(expected, value)
        return _reader(kind)(value)

    return read


def _tuple(kinds: tuple[Any, ...]) -> Reader:
    each = kinds[0] if kinds[-1] is Ellipsis else None

    def read(value: Any) -> Any:
        if not _is(value, list):
            raise _wrong("a list", value)
        items = cast("list[Any]", value)
        if each is None and len(items) != len(kinds):
            raise _wrong(f"{len(kinds)} items", value)
        readers = (_reader(each),) * len(items) if each is not None else map(_reader, kinds)
        found: list[Any] = []
        try:
            for inner, item in zip(readers, items, strict=True):
                found.append(inner(item))
        except _WrongError as error:
            error.path.append(f"[{len(found)}]")
            raise
        return tuple(found)

    return read


def _mapping(kind: Any) -> Reader:
    def read(value: Any) -> Any:
        if not _is(value, dict):
            raise _wrong("an object", value)
        found: dict[str, Any] = {}
        inner, key = _reader(kind), ""
        try:
            for key, item in cast("dict[str, Any]", value).items():
                if len(key) > MOST_NAME or not is_text(key):
                    raise _wrong(f"below a text of at most {MOST_NAME} characters", item)
                found[key] = inner(item)
        except _WrongError as error:
            error.path.append(f"[{key[:80]!r}]")
            raise
        return found

    return read


def _dataclass(kind: type[Any]) -> Reader:
    name = kind.__name__
    fields: dict[str, Reader] = {}  # filled at the first value: a type may have fields of its own

    def read(value: Any) -> Any:
        if not _is(value, dict) or cast("dict[str, Any]", value).get(NAME) != name:
            raise _wrong(f"a {name}", value)
        given = cast("dict[str, Any]", value)
        if not fields:
            fields.update((key, _reader(hint)) for key, hint in _hints(kind).items())
        if len(given) != len(fields) + 1 or not given.keys() >= fields.keys():
            odd = sorted((given.keys() ^ fields.keys()) - {NAME})
            told = ", ".join(repr(key[:80]) for key in odd[:4])
            raise _WrongError(f"lacks, or has beside what it should have: {told}")
        found: dict[str, Any] = {}
        key = ""
        try:
            for key, inner in fields.items():
                found[key] = inner(given[key])
        except _WrongError as error:
            error.path.append(f".{key}")
            raise
        return kind(**found)

    return read


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields by name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _wrong(expected: str, value: object) -> _WrongError:
    shown = reprlib.repr(value)
    return _WrongError(f"is {shown[:60]}{'...' * (len(shown) > 60)}, not {expected}")


__all__ = ["DTYPES", "MalformedError", "decode", "encode", "is_text", "parse"]
