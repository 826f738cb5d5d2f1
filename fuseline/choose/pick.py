"""Builds as few configurations as a choice needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fuseline.choose.model import first_of

C = TypeVar("C")
B = TypeVar("B")


@dataclass(frozen=True)
class Picked(Generic[B]):
    """What was chosen of several configurations.

    Attributes:
        place: of the chosen one; -1 where none can run.
        built: those that were built, by place.
        seconds: the estimate for each.
        refused: why those that cannot run cannot, by place.
    """

    place: int
    built: dict[int, B]
    seconds: tuple[float, ...]
    refused: dict[int, str]


def pick(
    options: Sequence[C],
    estimate: Callable[[C, B | None], float],
    build: Callable[[C], B | str],
) -> Picked[B]:
    """The first of the best options, by estimates.

    An option that is not built has an estimate that building it can only make worse. So the best is
    built until it stays the best: with good guesses one is built, of many.

    Args:
        options: the likelier first.
        estimate: seconds of an option; of one that is not built, the least that may become of it.
        build: the option's binary, or why it cannot run.

    """
    times = [estimate(option, None) for option in options]
    built: dict[int, B] = {}
    refused: dict[int, str] = {}
    while alive := [i for i in range(len(options)) if i not in refused]:
        best = alive[first_of([times[i] for i in alive])]
        if best in built:
            return Picked(best, built, tuple(times), refused)
        made = build(options[best])
        if isinstance(made, str):
            refused[best] = made
        else:
            built[best] = made
            times[best] = max(times[best], estimate(options[best], made))
    return Picked(-1, built, tuple(times), refused)


__all__ = ["Picked", "pick"]
