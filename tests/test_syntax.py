"""Threads that parse at the same time may come in each other's way; that is tried again."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest

from fuseline.syntax import TRIES, again, parse_expression, parse_module

CLASH = "AST constructor recursion depth mismatch (before=72, after=121)"


class Clashes:
    """A call that fails a number of times, directly or ``within`` another error, and counts."""

    def __init__(self, failures: int, *, within: str = "") -> None:
        self.failures = failures
        self.within = within
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls > self.failures:
            return "made"
        clash = SystemError(CLASH)
        if self.within == "cause":
            raise ValueError("at 1:0") from clash
        try:
            raise clash
        except SystemError:
            if self.within == "context":
                raise ValueError("at 1:0")  # noqa: B904
            raise


@pytest.mark.parametrize("within", ["", "cause", "context"])
def test_a_clash_of_threads_is_tried_again(within: str) -> None:
    assert again(Clashes(TRIES - 1, within=within)) == "made"


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


@pytest.mark.parametrize(
    ("parse", "text", "mode"),
    [(parse_module, "x = 1", "exec"), (parse_expression, " a + b ", "eval")],
)
def test_trees_are_those_of_ast(
    parse: Callable[[str], ast.AST], text: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the parser fails at first."""
    plain, left = ast.parse, [1]
    tree: Any = plain(text.strip(), mode=mode)

    def once(*args: Any, **kwargs: Any) -> Any:
        if left:
            left.pop()
            raise SystemError(CLASH)
        return plain(*args, **kwargs)

    monkeypatch.setattr(ast, "parse", once)
    found = parse(text)
    assert not left
    assert ast.dump(found) == ast.dump(tree if mode == "exec" else tree.body)
    with pytest.raises(SyntaxError):
        parse("x =")
