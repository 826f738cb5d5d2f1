"""Python's parser, asked again where a fault of its own stopped it.

Up to CPython 3.11.7, threads that build syntax trees at the same time share a counter of
depth, and one of them may end with a `SystemError` though its text is right (gh-106905).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TRIES = 8
"""How often a call is made. Threads clash once in hundreds of times, and not for long."""


def again(make: Callable[[], T]) -> T:
    """What a call returns, made again where threads that parse came in each other's way."""
    for _ in range(TRIES - 1):
        try:
            return make()
        except Exception as error:
            if not any("AST constructor recursion depth" in str(e) for e in _chain(error)):
                raise
    return make()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def parse_module(text: str) -> ast.Module:
    """The syntax tree of a module; errors as those of `ast.parse`."""
    return again(lambda: ast.parse(text))


def parse_expression(text: str) -> ast.expr:
    """The syntax tree of an expression; errors as those of `ast.parse`."""
    return again(lambda: ast.parse(text.strip(), mode="eval").body)


__all__ = ["again", "parse_expression", "parse_module"]
