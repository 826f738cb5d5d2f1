"""Where ops are drawn: none on another, and chains straight."""

from __future__ import annotations

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from fuseline.debug.page.layout import WIDEST, placed

Graph = list[list[int]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """What each op reads: any of those before it."""
    size = draw(st.integers(0, 40))
    return [
        sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(size)
    ]


@given(graphs())
def test_no_two_ops_are_in_one_place_and_each_is_below_what_it_reads(reads: Graph) -> None:
    places = placed(reads)
    assert len(set(places)) == len(reads)
    rows = [row for _, row in places]
    assert rows == sorted(rows), "the order of the program"
    assert all(rows.count(row) <= WIDEST for row in set(rows))
    assert all(places[s][1] < places[i][1] for i, each in enumerate(reads) for s in each)
    assert set(rows) == set(range(len(set(rows)))), "no row is empty"


@given(graphs())
def test_a_value_that_is_still_to_be_read_has_its_column_for_itself(reads: Graph) -> None:
    places = placed(reads)
    for maker in range(len(reads)):
        readers = [i for i, each in enumerate(reads) if maker in each]
        if not readers:
            continue
        column, row = places[maker]
        until = places[readers[-1]][1]
        between = [i for i, (x, y) in enumerate(places) if x == column and row < y < until]
        assert not between, "a line would go through an op"


def test_a_chain_is_straight() -> None:
    assert placed([[], [0], [1], [2]]) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_the_residual_stream_stays_where_it_is_and_branches_lie_beside_it() -> None:
    """Two blocks: a norm, two products of it, their product, and the sum."""
    reads: Graph = [[]]
    for _ in range(2):
        stream = len(reads) - 1
        norm = stream + 1
        reads += [[stream], [norm], [norm], [norm + 1, norm + 2], [stream, norm + 3]]
    places = placed(reads)
    assert [places[i] for i in (0, 5, 10)] == [(0, 0), (0, 4), (0, 8)]
    assert places[2][1] == places[3][1], "side by side"
    assert all(x > 0 for i, (x, _) in enumerate(places) if i not in (0, 5, 10))


def _program(size: int) -> Graph:
    """Chains with branches, and a few values that are read all the way down."""
    rng = random.Random(0)
    reads: Graph = []
    for i in range(size):
        sources = {i - 1 if rng.random() < 0.8 else rng.randrange(max(0, i - 60), i)} if i else {0}
        if rng.random() < 0.3 and i:
            sources.add(rng.randrange(max(0, i - 60), i))
        if rng.random() < 0.05 and i > 3:
            sources.add(rng.randrange(3))
        reads.append(sorted(sources) if i else [])
    return reads


def test_five_thousand_ops_are_placed_at_once_and_always_alike() -> None:
    """0.01 s, in a few dozen columns."""
    reads = _program(5000)
    started = time.perf_counter()
    places = placed(reads)
    assert time.perf_counter() - started < 1
    assert len(set(places)) == len(reads)
    assert max(x for x, _ in places) < 60
    assert placed(reads) == places
