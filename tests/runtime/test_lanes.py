"""What launches do with the two streams of a device."""

from __future__ import annotations

from fuseline.runtime.lanes import ASIDE, CLOSE, FORK, JOIN, turns


def test_a_branch_forks_before_its_first_launch_and_joins_before_the_main_lane() -> None:
    found = turns(["main", "aside", "aside", "beside", "main", "main"])
    assert found == [0, FORK | ASIDE, ASIDE, 0, JOIN, 0]


def test_streams_have_met_when_a_piece_ends() -> None:
    assert turns(["aside"]) == [FORK | ASIDE | CLOSE]
    assert turns(["aside", "beside"]) == [FORK | ASIDE, CLOSE]


def test_nothing_is_done_without_a_branch() -> None:
    assert turns(["main", "beside", "beside", "main"]) == [0, 0, 0, 0]
    assert turns([]) == []
