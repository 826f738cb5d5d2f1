"""Conditions: simplified as they are built, and never into something else."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from fuseline.ir.types import parse_dim
from fuseline.passes.masks.bounds import Bounds, larger
from fuseline.passes.masks.integers import Linear, new_index, of_dim
from fuseline.passes.masks.predicates import (
    FALSE,
    TRUE,
    AllOf,
    AnyOf,
    Condition,
    all_of,
    any_of,
    at_least_zero,
    conjuncts,
    indices,
    is_zero,
    negate,
    pick_condition,
)
from tests.passes.masks.numeric import Actual

BOUNDS = Bounds({})
Q, K = new_index("q", 4), new_index("k", 5)


def test_comparisons_that_hold_for_every_index_are_known() -> None:
    assert at_least_zero(Q, BOUNDS) == TRUE
    assert at_least_zero(Linear(4) - K, BOUNDS) == TRUE
    assert at_least_zero(Linear(-1) - Q, BOUNDS) == FALSE
    assert is_zero(Q - K.plus(7), BOUNDS) == FALSE
    assert is_zero(Q - Q, BOUNDS) == TRUE


def test_a_comparison_with_the_larger_of_two_is_two_comparisons() -> None:
    """So ``abs(q - k) <= 1`` is a window on either side."""
    distance = larger(Q - K, K - Q, BOUNDS)
    close = at_least_zero(Linear(1) - distance, BOUNDS)
    assert isinstance(close, AllOf)
    assert conjuncts(close) == (
        at_least_zero(Q.plus(1) - K, BOUNDS),
        at_least_zero(K - Q.plus(-1), BOUNDS),
    )
    assert isinstance(at_least_zero(distance.plus(-2), BOUNDS), AnyOf)


def test_negation_of_a_comparison_is_a_comparison() -> None:
    assert negate(at_least_zero(Q - K, BOUNDS)) == at_least_zero(K - Q.plus(1), BOUNDS)
    assert negate(negate(is_zero(Q - K, BOUNDS))) == is_zero(K - Q, BOUNDS)


def test_opposites_cover_everything() -> None:
    below = at_least_zero(Q - K, BOUNDS)
    assert any_of([below, negate(below)]) == TRUE


def test_conjuncts_of_nested_conjunctions() -> None:
    parts = [at_least_zero(Q - K.plus(n), BOUNDS) for n in range(3)]
    nested = all_of([parts[0], all_of([parts[1], TRUE, parts[2]]), parts[0]])
    assert set(conjuncts(nested)) == set(parts)
    assert conjuncts(TRUE) == ()
    assert conjuncts(FALSE) == (FALSE,)


def test_conditions_read_as_written() -> None:
    n = of_dim(parse_dim("N"))
    assert str(at_least_zero(Q + n - K, BOUNDS)) == "k <= N + q"
    assert str(is_zero(Q - K, BOUNDS)) == "k == q"
    assert str(negate(is_zero(Q - K, BOUNDS))) == "k != q"
    either = any_of([at_least_zero(Q - K, BOUNDS), is_zero(K, BOUNDS)])
    assert indices(either) == {"q", "k"}


def _sum(a: int, b: int, c: int) -> Linear:
    return Q.times(a) + K.times(b) + Linear(c)


def _either(a: Linear, b: Linear) -> Condition:
    return at_least_zero(larger(a, b, BOUNDS), BOUNDS)


sums = st.builds(
    _sum,
    st.integers(-2, 2),
    st.integers(-2, 2),
    st.integers(-4, 4),
)
leaves = st.one_of(
    sums.map(lambda e: at_least_zero(e, BOUNDS)),
    sums.map(lambda e: is_zero(e, BOUNDS)),
    st.builds(_either, sums, sums),
)


@given(st.lists(leaves, min_size=3, max_size=3))
def test_connectives_mean_what_they_say(conditions: list[Condition]) -> None:
    a, b, c = conditions
    made: list[tuple[Condition, Callable[[bool, bool, bool], bool]]] = [
        (all_of([a, any_of([b, c])]), lambda x, y, z: x and (y or z)),
        (negate(all_of([a, b, negate(c)])), lambda x, y, z: not (x and y and not z)),
        (pick_condition(a, b, c), lambda x, y, z: y if x else z),
    ]
    for q, k in itertools.product(range(4), range(5)):
        actual = Actual({"q": q, "k": k}, {}, {})
        x, y, z = (bool(actual.value(p)) for p in conditions)
        for condition, meaning in made:
            assert actual.value(condition) == meaning(x, y, z)
