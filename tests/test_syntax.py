"""Threads that parse at the same time may come in each other's way; that is tried again."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from fuseline.syntax import TRIES, again, parse_expression, parse_module

CLASH = "AST constructor recursion depth mismatch (before=72, after=121)"


class Clashes:
    """A call that fails a number of times, directly or within another error, and counts."""

    def __init__(self, failures: int, *, wrapped: bool = False) -> None:
        self.failures = failures
        self.wrapped = wrapped
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls > self.failures:
            return "made"
        clash = SystemError(CLASH)
        if self.wrapped:
            raise ValueError("at 1:0") from clash
        raise clash


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_clash_of_threads_is_tried_again(wrapped: bool) -> None:
    assert again(Clashes(TRIES - 1, wrapped=wrapped)) == "made"


def test_not_forever() -> None:
    call = Clashes(TRIES)
    with pytest.raises(SystemError, match="recursion depth mismatch"):
        again(call)
    assert call.calls == TRIES


def test_other_errors_come_at_once() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise SystemError("something else")

    with pytest.raises(SystemError, match="something else"):
        again(fail)
    assert len(calls) == 1


def test_trees_are_those_of_ast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the parser fails at first."""
    module = ast.dump(ast.parse("x = 1"))
    expression = ast.dump(ast.parse("a + b", mode="eval").body)
    plain, left = ast.parse, [1, 1]

    def parse(*args: Any, **kwargs: Any) -> Any:
        if left and left.pop():
            raise SystemError(CLASH)
        return plain(*args, **kwargs)

    monkeypatch.setattr(ast, "parse", parse)
    assert ast.dump(parse_module("x = 1")) == module
    assert ast.dump(parse_expression(" a + b ")) == expression
    assert not left
    with pytest.raises(SyntaxError):
        parse_module("x =")
