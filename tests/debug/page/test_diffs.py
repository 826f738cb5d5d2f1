"""Side-by-side diffs: they tell all that changed, and take no time."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fuseline.debug.page.data import Hunk
from fuseline.debug.page.diffs import AROUND, hunks
from tests.debug.page.pages import applied

LINES = st.lists(st.integers(0, 9), max_size=30)


def key(line: int) -> str:
    return str(line % 5)


@given(LINES, LINES)
def test_hunks_make_one_text_of_the_other(before: list[int], after: list[int]) -> None:
    found = hunks(before, after, key)
    assert applied(before, found) == after
    assert bool(found) == (before != after)
    for hunk in found:
        assert any(old != new for old, new in hunk.rows)
        assert (-1, -1) not in hunk.rows


@given(st.sets(st.integers(0, 199)), st.integers(0, 2**16))
def test_no_lines_but_those_around_a_change_are_shown(gone: set[int], seed: int) -> None:
    rng = random.Random(seed)
    before = list(range(200))
    after = [line + 1000 if rng.random() < 0.5 else line for line in before if line not in gone]
    found = hunks(before, after, str)
    changed = len(gone) + sum(line >= 1000 for line in after)
    assert sum(len(hunk.rows) for hunk in found) <= changed * (2 * AROUND + 2)
    assert applied(before, found) == after


def test_a_line_that_changed_stands_beside_what_it_was() -> None:
    """By its key, here the last digit: what is deleted around it has no line to stand beside."""
    before = [1, 12, 13, 14, 5]
    after = [1, 24, 5]
    assert hunks(before, after, lambda line: str(line % 10)) == (
        Hunk(1, 1, ((1, 1), (12, -1), (13, -1), (14, 24), (5, 5))),
    )


def test_hunks_tell_where_they_begin_in_either_text() -> None:
    before = list(range(40))
    after = [*before[:10], *before[12:30], 99, *before[30:]]
    first, second = hunks(before, after, str)
    assert (first.before, first.after) == (8, 8)
    assert (second.before, second.after) == (28, 26)


def _edited(lines: Sequence[int], rng: random.Random) -> list[int]:
    """A text as a fusing pass leaves it: a third of the lines gone, and others in their place."""
    found: list[int] = []
    for line in lines:
        draw = rng.random()
        if draw > 0.3:
            found.append(line + 10**6 if draw < 0.6 else line)
    return found


def test_thousands_of_lines_take_no_time() -> None:
    """0.02 s for 5,000 lines, and less where all are in another order, or all are alike."""
    rng = random.Random(0)
    before = list(range(5000))
    shuffled = rng.sample(before, len(before))
    alike = [[rng.randrange(50) for _ in before] for _ in range(2)]
    for one, other in ((before, _edited(before, rng)), (before, shuffled), (alike[0], alike[1])):
        started = time.perf_counter()
        found = hunks(one, other, str)
        assert time.perf_counter() - started < 1
        assert applied(one, found) == other
