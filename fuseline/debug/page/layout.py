"""Where the ops of a graph are drawn.

Rows follow the order of the program: an op is below what it reads, beside those before it that it
does not depend on. A value has its column for as long as somebody is still to read it, and the last
of its readers goes on there. So chains are straight, the residual stream of a model runs down in
one column, what branches off lies beside it, and no line crosses an op.
"""

from __future__ import annotations

from collections.abc import Sequence

WIDEST = 8
"""Ops of one row: more that do not depend on one another go into the next."""

Place = tuple[int, int]
"""Column and row."""


def placed(reads: Sequence[Sequence[int]]) -> list[Place]:
    """The places of ops, given the numbers of the ops that each reads, all before its own."""
    last = list(range(len(reads)))
    for number, sources in enumerate(reads):
        for source in sources:
            last[source] = number
    columns = _Columns()
    places: list[Place] = []
    row = 0
    for number, sources in enumerate(reads):
        lowest = max((places[s][1] for s in sources), default=-1)
        if lowest >= row or len(columns.used) >= WIDEST:
            row += 1
            columns.used.clear()
        ends = [s for s in sources if last[s] == number]
        kept = [places[s][0] for s in ends if places[s][0] not in columns.used]
        if kept:
            column = min(kept)
        else:
            near = max((places[s][0] for s in sources), default=places[-1][0] if places else 0)
            column = columns.free(near)
        for source in ends:
            columns.taken.discard(places[source][0])
        columns.used.add(column)
        if last[number] > number:
            columns.taken.add(column)
        places.append((column, row))
    return places


class _Columns:
    """Columns that values have, and those that ops of the row at hand are in."""

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.used: set[int] = set()

    def free(self, near: int) -> int:
        """The column nearest to another that nobody has: to its right, where there are two."""
        for distance in range(len(self.taken) + len(self.used) + near + 2):
            for column in (near + distance, near - distance):
                if column >= 0 and column not in self.taken and column not in self.used:
                    return column
        raise AssertionError("some column is free")


__all__ = ["placed"]
