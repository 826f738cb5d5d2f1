"""The binary search: what it finds, in how many steps, and what it does where it cannot tell."""

from __future__ import annotations

import math

import pytest

from fuseline.debug.search import First, first_bad


@pytest.mark.parametrize("total", [1, 2, 3, 7, 8, 53, 64, 100])
def test_every_answer_is_found_in_time(total: int) -> None:
    """With the compilation of everything, at most 2 + log2(n), whether or not n = 0 fails."""
    for answer in range(total + 1):
        asked: list[int] = []

        def fails(number: int, answer: int = answer, asked: list[int] = asked) -> bool:
            asked.append(number)
            return number >= answer

        assert first_bad(-1, total, fails).bad == answer
        assert 1 + len(asked) <= 2 + math.log2(total)


def test_what_cannot_be_told_is_gone_around() -> None:
    def fails(number: int) -> bool | None:
        return None if number in (4, 5) else number >= 8

    assert first_bad(-1, 10, fails).bad == 8


def test_what_cannot_be_told_beside_the_answer_is_said() -> None:
    def fails(number: int) -> bool | None:
        return None if number in (6, 7) else number >= 8

    assert first_bad(-1, 10, fails) == First(8, 5, (6, 7))
