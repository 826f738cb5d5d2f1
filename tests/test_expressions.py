"""Expressions of sizes: what is one, and what would grow without an end."""

from __future__ import annotations

import time

import pytest

from fuseline.expressions import is_integer_expression, is_size_name
from fuseline.ir.types import parse_dim


@pytest.mark.parametrize(
    "text",
    [
        "1", "x", "x + 1", "-x", "2*x*y", "x // 4", "x % 8", "x**2", "(x + 1)**2", "Max(1, x)",
        "Min(x, y, 3)", "4*num_workers*(320*s77 + 96)", "-(s0 // 4)*4 + s0", " x", "x" * 60,
        "+".join(["x"] * 100),
    ],
)  # fmt: skip
def test_sizes(text: str) -> None:
    assert is_integer_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1.0", "'a'", "x.y", "x[0]", "[x]", "(x,)", "x if y else z", "x and y", "not x",
        "x < y", "x / y", "x << 3", "~x", "x @ y", "f(x)", "Max", "Max()", "Max + 1", "Max(x=1)",
        "Max(*x)", "(lambda: 1)()", "__import__('os')", "x**y", "x**-1", "x**9", "True", "None",
        "1or 2", "0x10", "1_000", "10j", "x\n+ 1", "x # 1", "x;y", "\u0661", "\ufb01", "lambda",
        "((((9**8)**8)**8)**8)**8", "**".join("9" * 9), "x*" * 5000 + "x", "+".join("x" * 4000),
        "(" * 300 + "x" + ")" * 300, "-" * 5000 + "x", "x" * 10_001, "9" * 5000,
        "(a+b+c+d+e+f+g+h+i+j)**8", "*".join(["(a+b+c+d)"] * 20),
    ],
)  # fmt: skip
def test_no_sizes(text: str) -> None:
    """Each is refused, and at once: none of them is evaluated, or multiplied out."""
    started = time.monotonic()
    assert not is_integer_expression(text)
    with pytest.raises(ValueError, match="is not a dim expression"):
        parse_dim(text)
    assert time.monotonic() - started < 2


def test_names_of_sizes() -> None:
    assert all(map(is_size_name, ("x", "s77", "B", "num_workers", "_x")))
    for name in ("", "1x", "x y", "lambda", "None", "Max", "Min", "__debug__", "\ufb01", "x.y"):
        assert not is_size_name(name)


def test_names_may_be_given() -> None:
    assert is_integer_expression("x + y", {"x", "y"})
    assert not is_integer_expression("x + z", {"x", "y"})
