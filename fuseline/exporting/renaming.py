"""Sizes by the names that the user gave them, in all that an artifact says of a program.

The func and its kernels keep the names of tracing: what a kernel is does not depend on how a user
calls a size, and so builds of it are shared.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar, cast

from fuseline.artifact.program import ProgramFile
from fuseline.runtime.plan import Expr

T = TypeVar("T")

_EXPR: Any = int | str
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def renamed(file: ProgramFile, names: Mapping[str, str]) -> ProgramFile:
    """A program whose sizes have other names.

    Args:
        file: what is stored of it.
        names: the user's name of each size that has one, by that of tracing.

    """
    if not names:
        return file

    def text(value: str) -> str:
        return _WORD.sub(lambda word: names.get(word[0], word[0]), value)

    def keys(values: Mapping[str, T]) -> dict[str, T]:
        return {names.get(key, key): value for key, value in values.items()}

    def size(expr: Expr) -> Expr:
        return text(expr) if isinstance(expr, str) else expr

    plan = _map(file.plan, size)
    plan = replace(
        plan,
        symbols=keys(plan.symbols),
        ranges=keys(plan.ranges),
        pads=keys(plan.pads),
        unpadded={key: text(why) for key, why in keys(plan.unpadded).items()},
        variants=tuple(replace(v, symbol=text(v.symbol)) for v in plan.variants),
    )
    return replace(
        file,
        plan=plan,
        returns=tuple(_map(owed, size) for owed in file.returns),
        symbols=keys(file.symbols),
        traced={name: own for own, name in names.items()},
        sites=tuple(_words(site, text) for site in file.sites),
        kernels=tuple(_words(record, text) for record in file.kernels),
    )


def _map(value: T, change: Callable[[Expr], Expr]) -> T:
    """A dataclass with every expression in it changed: fields say by their types what is one."""
    kinds = _hints(type(value))
    own = (f.name for f in fields(cast("Any", value)))
    changed = {name: _of(kinds[name], getattr(value, name), change) for name in own}
    return cast("Any", replace)(value, **changed)


def _of(kind: Any, value: Any, change: Callable[[Expr], Expr]) -> Any:
    if kind is Any:
        return value
    if kind == _EXPR:
        return change(value)
    if is_dataclass(value):
        return _map(value, change)
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        parts = _parts(kind)
        kinds = parts[:1] * len(items) if parts[-1:] == (...,) else parts
        return tuple(_of(inner, item, change) for inner, item in zip(kinds, items, strict=True))
    if isinstance(value, Mapping) and typing.get_args(kind):
        inner = typing.get_args(kind)[1]
        return {k: _of(inner, v, change) for k, v in cast("Mapping[str, Any]", value).items()}
    return cast("object", value)


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types of a tuple's items, also where the field may be None."""
    options = (kind, *typing.get_args(kind))
    return next(typing.get_args(k) for k in options if typing.get_origin(k) is tuple)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _words(record: T, text: Callable[[str], str]) -> T:
    """A record for people, with sizes by their names in every text."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return text(value)
        if is_dataclass(value):
            return _words(value, text)
        if isinstance(value, tuple):
            return tuple(changed(item) for item in cast("tuple[Any, ...]", value))
        if isinstance(value, Mapping):
            return {k: changed(v) for k, v in cast("Mapping[str, Any]", value).items()}
        return value

    own = fields(cast("Any", record))
    return cast("Any", replace)(record, **{f.name: changed(getattr(record, f.name)) for f in own})


__all__ = ["renamed"]
