"""How many configurations are built for a choice."""

from __future__ import annotations

from collections.abc import Mapping

from fuseline.choose.pick import Picked, pick


def picked(
    guesses: Mapping[str, float], truths: Mapping[str, float | str]
) -> tuple[Picked[float], list[str]]:
    """A choice among options by name, and which of them were built for it."""
    asked: list[str] = []

    def build(name: str) -> float | str:
        asked.append(name)
        return truths[name]

    def estimate(name: str, made: float | None) -> float:
        return guesses[name] if made is None else made

    return pick(list(guesses), estimate, build), asked


def test_of_equal_guesses_the_first_is_built_and_no_other() -> None:
    found, asked = picked({"a": 1, "b": 1, "c": 1}, {"a": 1.05})
    assert (found.place, asked) == (0, ["a"])


def test_the_best_guess_is_built_first() -> None:
    found, asked = picked({"a": 5, "b": 1, "c": 2}, {"b": 1.5})
    assert (found.place, asked) == (1, ["b"])


def test_what_turns_out_worse_is_held_against_the_next() -> None:
    found, asked = picked({"a": 1, "b": 1, "c": 9}, {"a": 4, "b": 1.2})
    assert (found.place, asked) == (1, ["a", "b"])
    assert found.built == {0: 4, 1: 1.2}


def test_all_that_turn_out_alike_leave_the_first() -> None:
    found, asked = picked({"a": 1, "b": 1}, {"a": 4, "b": 4})
    assert (found.place, asked) == (0, ["a", "b"])


def test_what_cannot_run_is_passed_over_with_its_reason() -> None:
    found, asked = picked({"a": 1, "b": 1}, {"a": "it spills", "b": 7})
    assert (found.place, found.refused, asked) == (1, {0: "it spills"}, ["a", "b"])


def test_none_is_left() -> None:
    found, _ = picked({"a": 1, "b": 2}, {"a": "it spills", "b": "no room"})
    assert found.place == -1
    assert found.refused == {0: "it spills", 1: "no room"}


def test_a_binary_is_never_thought_better_than_its_guess() -> None:
    found, _ = picked({"a": 2, "b": 1}, {"b": 0.1})
    assert found.seconds == (2, 1)
