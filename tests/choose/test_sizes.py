"""Ranges of sizes, and numbers that stand for them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseline.choose.cases import bound, cases_of
from fuseline.choose.sizes import CUTS, Span, binding, counted, spans, value_of
from fuseline.codegen import lowerings
from fuseline.codegen.lower import emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import Dim, Range, dim, substitute, symbol

assert lowerings.__all__, "importing the module registers the lowerings"

S, B = symbol("S"), symbol("B")
ANY = {"S": Range(0, None), "B": Range(0, None)}


def test_a_known_size_is_one_range() -> None:
    assert spans(7, [(7, 0, 16)], {}) == [Span(7, 7)]


@given(
    low=st.integers(0, 40),
    high=st.none() | st.integers(40, 3000),
    ends=st.lists(st.integers(1, 4000), max_size=4),
)
def test_ranges_cover_all_sizes_once_and_cut_no_launch(
    low: int, high: int | None, ends: list[int]
) -> None:
    whens = [(S, 0 if i == 0 else ends[i - 1] + 1, end) for i, end in enumerate(sorted(ends))]
    found = spans(S, whens, {"S": Range(low, high)})
    assert found[0].first == low
    assert found[-1].last == high
    for before, behind in itertools.pairwise(found):
        assert before.last is not None
        assert behind.first == before.last + 1 > before.first
    for _, first, last in whens:
        for span in found:
            inside = [count in Span(first, last) for count in (span.first, *span.ends)]
            assert all(inside) or not any(inside) or span.first == 0


def test_without_launches_of_their_own_ranges_the_usual_cuts_are_made() -> None:
    found = spans(S, [None], {"S": Range(1, None)})
    assert [span.last for span in found] == [*CUTS, None]
    assert [str(span) for span in found[:2]] == ["1", "2 to 16"]
    assert str(found[-1]) == "1025 and up"


def test_rows_are_counted_without_the_factor_of_heads() -> None:
    func = parse_func("func @f(%x: f32[B, S, 32, 8]) { %y = rms_norm %x  return %y }")
    found = counted(func.ops[0], [None])
    assert found == dim(B * S)
    assert counted(func.ops[0], [(S, 0, 1), None, (S, 2, None)]) == S
    assert counted(func.ops[0], [(S, 0, 1), (B, 2, None)]) is None


@pytest.mark.parametrize("count", [S, dim(B * S), dim(2 * S), dim(S + B)])
@pytest.mark.parametrize("wanted", [1, 2, 16, 90, 8192])
def test_a_binding_comes_close_and_does_not_exceed(count: Dim, wanted: int) -> None:
    values = binding(count, wanted, ANY)
    least = value_of(count, {"S": 1, "B": 1})
    assert value_of(count, values) <= max(wanted, least)
    assert value_of(count, values) > wanted // 2


def test_a_binding_keeps_to_the_bounds_of_symbols() -> None:
    limits = {"S": Range(2, 64), "B": Range(1, None), "L": Range(1, 256)}
    values = binding(dim(B * S), 512, limits)
    assert 2 <= values["S"] <= 64
    assert values["B"] * values["S"] == 512
    assert values["L"] == 256


@given(st.integers(1, 999), st.integers(1, 999))
def test_a_value_is_that_of_a_substitution(s: int, b: int) -> None:
    for value in (dim(3 * S * B + 1), dim((S + 7) // 8 * B), 5):
        assert value_of(value, {"S": s, "B": b}) == substitute(value, {"S": s, "B": b})


def test_the_middle_is_one_by_factors() -> None:
    assert (Span(1, 1).middle, Span(2, 16).middle, Span(0, 0).ends) == (1, 6, (0,))
    assert Span(1025, None).middle == round((1025 * 8 * 1025) ** 0.5)


@pytest.mark.parametrize(
    "text",
    [
        """func @f(%c: buffer<f32[1, 2, 64, 8]>, %i: i64[I], %x: f32[1, 2, S, 8]) {
          index_write %c, %i, %x {axis = 2}
          return
        }""",
        """func @f(%c: f32[64, 8], %i: i64[I], %x: f32[S, 8]) {
          %y = index_copy %c, %i, %x {axis = 0}
          return %y
        }""",
    ],
)
def test_as_many_indices_as_rows_are_written(text: str) -> None:
    """They are two symbols, which tracing has not compared: kernels would read beyond the rows."""
    func = parse_func(text)
    (item,) = emit(func, LayoutMap(func))
    for case in cases_of(item, func.symbols):
        for size in case.span.ends:
            values = bound(case, size, func.symbols)
            assert values["I"] == values["S"], case.sizes
