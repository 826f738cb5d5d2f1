"""Linear expressions: one form for equal ones, and bounds that are never wrong."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseline.ir.types import Range, parse_dim
from fuseline.passes.masks.bounds import Bounds, larger, quotient
from fuseline.passes.masks.integers import Linear, Unknown, new_index, of_dim, to_dim
from tests.passes.masks.numeric import Actual

RANGES = {"S": Range(1, 4), "T": Range(2, None), "U": Range(0, 3)}
SIZES = [{"S": s, "T": t, "U": u} for s in (1, 2, 4) for t in (2, 5) for u in (0, 1, 3)]


def test_equal_sums_are_equal_however_they_are_written() -> None:
    i, s = new_index("i", parse_dim("S")), of_dim(parse_dim("S"))
    assert i + s - i.times(2) + i == s
    assert (i + s).plus(3) - s == i.plus(3)
    assert hash(i + s) == hash(s + i)


def test_an_index_below_one_is_zero() -> None:
    assert new_index("i", 1) == Linear(0)


@pytest.mark.parametrize(
    "text", ["7", "S", "2*S - T + 3", "S*T", "S**2", "(S + 3)//2", "Max(0, S - 4)", "Min(S, T + 1)"]
)
def test_dims_go_through_and_back(text: str) -> None:
    dim = parse_dim(text)
    assert to_dim(of_dim(dim)) == dim


def test_dims_that_are_not_sums_are_refused() -> None:
    with pytest.raises(Unknown):
        of_dim(parse_dim("S % 3"))
    with pytest.raises(Unknown):
        to_dim(new_index("i", 4))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("S - 1", True),
        ("S - 2", False),
        ("4 - S", True),
        ("3 - S", False),
        ("T - 2", True),
        ("9 - T", False),
        ("S*T - 2", True),
        ("T - S", False),
        ("Max(0, S - 4)", True),
        ("Max(0, S - 4) - S + 4", True),
        ("S - Max(0, S - 4)", True),
        ("1 - Max(0, S - 3)", True),
        ("0 - Max(0, S - 3)", False),
        ("(T + 2)//2 - 2", True),
        ("(T + 2)//2 - 3", False),
    ],
)
def test_bounds_of_sizes(text: str, holds: bool) -> None:
    assert Bounds(RANGES).nonnegative(of_dim(parse_dim(text))) is holds


def test_bounds_of_indices_by_their_extent() -> None:
    s, bounds = of_dim(parse_dim("S")), Bounds(RANGES)
    i, j = new_index("i", parse_dim("S")), new_index("j", parse_dim("S"))
    assert bounds.nonnegative(i)
    assert bounds.nonnegative(s - i - Linear(1))
    assert not bounds.nonnegative(i - j)
    assert bounds.nonnegative(i - j + s)


def test_facts_are_further_premises() -> None:
    bounds = Bounds({})
    i, n = new_index("i", 5), of_dim(parse_dim("N"))
    unknown = n.times(-1) + i.times(3)
    assert not bounds.nonnegative_by_facts(unknown.plus(2))
    bounds.facts.append(unknown)
    assert bounds.nonnegative_by_facts(unknown.plus(2))
    assert not bounds.nonnegative_by_facts(unknown.plus(-1))


def test_quotients_lose_their_multiples() -> None:
    bounds = Bounds({})
    i, j = new_index("i", 6), new_index("j", 3)
    assert quotient(i.times(3) + j, 3, bounds) == i
    assert quotient(i.times(6).plus(7), 3, bounds) == i.times(2).plus(2)
    assert str(quotient(i, 2, bounds)) == "(i)//2"


def test_the_larger_is_known_by_the_ranges() -> None:
    s = of_dim(parse_dim("S"))
    assert larger(Linear(0), s.plus(-4), Bounds({"S": Range(5, None)})) == s.plus(-4)
    assert larger(Linear(0), s.plus(-4), Bounds({"S": Range(0, 4)})) == Linear(0)


def test_expressions_read_as_written() -> None:
    i, s = new_index("i", 5), of_dim(parse_dim("S"))
    assert str(i + s.times(2).plus(-1)) == "2*S + i - 1"
    assert str(-i) == "-i"
    assert str(Linear(-3)) == "-3"


INDICES = {"i": 4, "j": 3}
parts = st.sampled_from(["S", "T", "U", "S*U", "(T + U)//3", "Max(U, S - 2)"])
leaf = st.one_of(
    parts.map(lambda t: of_dim(parse_dim(t))),
    st.sampled_from(sorted(INDICES)).map(lambda n: new_index(n, INDICES[n])),
)
sums = st.lists(st.tuples(leaf, st.integers(-3, 3)), max_size=4)


@given(sums, st.integers(-6, 6), st.integers(1, 4))
def test_what_is_proven_holds_everywhere(
    terms: list[tuple[Linear, int]], const: int, by: int
) -> None:
    bounds = Bounds(RANGES)
    expr = Linear(const)
    for atom, factor in terms:
        expr = expr + atom.times(factor)
    proven = bounds.nonnegative(expr)
    divided, most = quotient(expr, by, bounds), larger(expr, Linear(1), bounds)
    for sizes, i, j in itertools.product(SIZES, range(4), range(3)):
        actual = Actual({"i": i, "j": j}, sizes, {})
        number = actual.integer(expr)
        assert number >= 0 or not proven
        assert actual.integer(divided) == number // by
        assert actual.integer(most) == max(number, 1)
