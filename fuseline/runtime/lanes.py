"""Launches of independent branches, side by side on two streams of a device.

    main    lane, which waits for what is on the other stream
    aside   on the other stream, behind what the main lane did before the first of them
    beside  on the main stream, at the same time

An op may put a branch aside; the launches beside it are those of the same op, up to its first one
of the main lane. So all memory that a branch reads or writes is alive as long as the op runs, and
planning needs no further rule; within scratch, the op keeps the parts of its branches apart.

Whether there is another stream is known when the launches run. Without one they go to the main
stream in their order, which must be right, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

Lane: TypeAlias = Literal["main", "beside", "aside"]

FORK, ASIDE, JOIN, CLOSE = 1, 2, 4, 8
"""What a launch does beside launching: has the other stream wait for the main one; goes to it; has
the main stream wait for it first; or afterwards, as the last of a piece."""


def turns(lanes: Sequence[Lane]) -> list[int]:
    """What each launch of a piece does with the streams; both have met when the piece ends."""
    found: list[int] = []
    apart = False
    for lane in lanes:
        turn = 0
        if lane == "aside":
            turn = ASIDE if apart else ASIDE | FORK
            apart = True
        elif lane == "main" and apart:
            turn = JOIN
            apart = False
        found.append(turn)
    if apart:
        found[-1] |= CLOSE
    return found


__all__ = ["ASIDE", "CLOSE", "FORK", "JOIN", "Lane", "turns"]
