"""The binary search of `bisect`: the first of some numbers at which a check fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class First:
    """Where a check fails first.

    Attributes:
        bad: the smallest number that fails while the one below, or ``good``, does not.
        good: the largest known number below that does not fail; -1 where none is known.
        skipped: numbers between the two of which the check could not tell.
    """

    bad: int
    good: int
    skipped: tuple[int, ...] = ()


def first_bad(
    good: int, bad: int, check: Callable[[int], bool | None], *, skipped: set[int] | None = None
) -> First:
    """Search between a number that does not fail, or -1, and one that does.

    Of ``n`` numbers in question the check sees at most ``ceil(log2(n))``, if it can always tell.

    Args:
        good: known not to fail; -1: nothing is known.
        bad: known to fail.
        check: whether a number fails; None where that cannot be told.
        skipped: numbers that need not be tried.

    """
    unclear = skipped or set()
    while True:
        inside = [n for n in range(good + 1, bad) if n not in unclear]
        if not inside:
            return First(bad, good, tuple(sorted(n for n in unclear if good < n < bad)))
        middle = inside[(len(inside) - 1) // 2 if len(inside) % 2 else len(inside) // 2]
        failed = check(middle)
        if failed is None:
            unclear.add(middle)
        elif failed:
            bad = middle
        else:
            good = middle
