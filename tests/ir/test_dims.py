"""Dims: their text gives back the same expression, and evaluates to the same number."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseline.ir.types import Dim, dim, floor_div, format_dim, parse_dim, substitute, symbol

B, S = symbol("B"), symbol("S")
LEAVES: tuple[Dim, ...] = (B, S, 1, 2, 3, 7)


def combine(name: str, a: Dim, b: Dim) -> Dim:
    """An expression over two dims."""
    one, other = sympy.sympify(a), sympy.sympify(b)
    made: dict[str, Any] = {
        "+": one + other,
        "-": one - other,
        "*": one * other,
        "//": floor_div(a, dim(other**2 + 1)),
        "%": sympy.Mod(one, other**2 + 2),
        "max": sympy.Max(one, other),
        "min": sympy.Min(one, other),
    }
    return dim(made[name])


def joined(parts: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    names = st.sampled_from(["+", "-", "*", "//", "%", "max", "min"])
    return st.builds(combine, names, parts, parts)


DIMS = st.recursive(st.sampled_from(LEAVES), joined, max_leaves=5)


@given(DIMS)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_text_gives_back_the_number(value: Dim) -> None:
    again = parse_dim(format_dim(value))
    for sizes in ({"B": 3, "S": 11}, {"B": 8, "S": 5}):
        assert substitute(again, sizes) == substitute(value, sizes)
    assert format_dim(again) == format_dim(parse_dim(format_dim(again)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (floor_div(S, 2), "(S)//(2)"),
        (dim(2 * floor_div(S, 2)), "2*((S)//(2))"),
        (dim(sympy.Mod(S, 4) * 3), "3*((S)%(4))"),
    ],
)
def test_division_keeps_its_place_in_a_product(value: Dim, text: str) -> None:
    assert format_dim(value) == text
    assert parse_dim(text) == value
