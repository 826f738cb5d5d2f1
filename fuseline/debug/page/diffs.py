"""What a pass changed in a func's text, side by side.

Most lines of a func are there once, as each defines values of its own. So lines that both texts
have once hold them together, and only what lies between is compared any further: difflib alone
takes minutes for thousands of lines.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher

from fuseline.debug.page.data import Hunk, Row

AROUND = 3
"""Lines that are shown before and after a change."""

_SMALL = 1 << 16
"""Pairs of lines up to which difflib is quick."""

Key = Callable[[int], str]
"""What a line is told by: two changed lines with one key are a line that changed."""


def hunks(before: Sequence[int], after: Sequence[int], key: Key) -> tuple[Hunk, ...]:
    """The parts of two texts that differ, with some lines around them.

    Args:
        before: the numbers of one text's lines.
        after: those of the other's.
        key: what tells that a line became another.

    """
    rows = list(_rows(before, after, key))
    changed = [i for i, (old, new) in enumerate(rows) if old != new]
    found: list[Hunk] = []
    place, old, new = 0, 1, 1
    for first, last in _near(changed):
        first = max(0, first - AROUND)
        old += sum(line >= 0 for line, _ in rows[place:first])
        new += sum(line >= 0 for _, line in rows[place:first])
        place = first
        found.append(Hunk(old, new, tuple(rows[first : last + AROUND + 1])))
    return tuple(found)


def _near(changed: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of those that lie so near that what is around them would touch."""
    found: list[tuple[int, int]] = []
    for row in changed:
        if found and row - found[-1][1] <= 2 * AROUND + 1:
            found[-1] = (found[-1][0], row)
        else:
            found.append((row, row))
    return found


def _rows(before: Sequence[int], after: Sequence[int], key: Key) -> Iterator[Row]:
    """All of two texts, side by side."""
    old, new = 0, 0
    for start, other, size in _common(before, after, 0, len(before), 0, len(after)):
        yield from _paired(before[old:start], after[new:other], key)
        yield from ((line, line) for line in before[start : start + size])
        old, new = start + size, other + size
    yield from _paired(before[old:], after[new:], key)


def _common(
    a: Sequence[int], b: Sequence[int], a0: int, a1: int, b0: int, b1: int
) -> Iterator[tuple[int, int, int]]:
    """Runs of equal lines in parts of two texts, in order: where in each, and how many."""
    head = 0
    while a0 + head < a1 and b0 + head < b1 and a[a0 + head] == b[b0 + head]:
        head += 1
    if head:
        yield a0, b0, head
    a0, b0 = a0 + head, b0 + head
    tail = 0
    while a0 < a1 - tail and b0 < b1 - tail and a[a1 - tail - 1] == b[b1 - tail - 1]:
        tail += 1
    a1, b1 = a1 - tail, b1 - tail
    if a0 < a1 and b0 < b1:
        yield from _between(a, b, a0, a1, b0, b1)
    if tail:
        yield a1, b1, tail


def _between(
    a: Sequence[int], b: Sequence[int], a0: int, a1: int, b0: int, b1: int
) -> Iterator[tuple[int, int, int]]:
    anchors = _anchors(a[a0:a1], b[b0:b1])
    if anchors:
        old, new = a0, b0
        for i, j in anchors:
            yield from _common(a, b, old, a0 + i, new, b0 + j)
            yield a0 + i, b0 + j, 1
            old, new = a0 + i + 1, b0 + j + 1
        yield from _common(a, b, old, a1, new, b1)
    elif (a1 - a0) * (b1 - b0) <= _SMALL:
        matcher = SequenceMatcher(None, a[a0:a1], b[b0:b1], autojunk=False)
        yield from ((a0 + i, b0 + j, n) for i, j, n in matcher.get_matching_blocks() if n)


def _anchors(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """The most lines that both have once, and in the same order."""
    counts, others = Counter(a), Counter(b)
    place = {line: i for i, line in enumerate(a) if counts[line] == 1}
    pairs = [(place[x], j) for j, x in enumerate(b) if others[x] == 1 and x in place]
    return _rising(pairs)


def _rising(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest part of some pairs whose first numbers rise as the second ones do."""
    ends: list[int] = []
    at: list[int] = []
    before: list[int] = []
    for number, (first, _) in enumerate(pairs):
        place = bisect_left(ends, first)
        before.append(at[place - 1] if place else -1)
        ends[place : place + 1] = [first]
        at[place : place + 1] = [number]
    found: list[tuple[int, int]] = []
    number = at[-1] if at else -1
    while number >= 0:
        found.append(pairs[number])
        number = before[number]
    return found[::-1]


def _paired(before: Sequence[int], after: Sequence[int], key: Key) -> Iterator[Row]:
    """Lines that went beside those that came; where a key says so, a line beside what it became."""
    keys: dict[str, int] = {}
    names = [keys.setdefault(key(line), len(keys)) for line in before]
    old, new = 0, 0
    for i, j in _anchors(names, [keys.setdefault(key(line), len(keys)) for line in after]):
        yield from _zipped(before[old:i], after[new:j])
        yield before[i], after[j]
        old, new = i + 1, j + 1
    yield from _zipped(before[old:], after[new:])


def _zipped(before: Sequence[int], after: Sequence[int]) -> Iterator[Row]:
    for i in range(max(len(before), len(after))):
        yield (
            before[i] if i < len(before) else -1,
            after[i] if i < len(after) else -1,
        )


__all__ = ["hunks"]
