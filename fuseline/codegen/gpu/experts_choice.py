"""How routed experts find their pairs and how large their blocks are, by the number of tokens.

Chosen by counting, not measured:

* One token meets each expert once: a block streams some columns of one expert, 16 elements of each
  matrix to a thread (two loads of 16 bytes in a 16-bit type), so that a few hundred blocks have
  enough bytes on their way for the memory of any target.
* From two tokens on, those that meet in an expert share its weights in one block of 16, the least
  that tensor cores multiply. Up to 128 pairs a block finds them by itself: no sort, no further
  launch. Blocks are narrow (32 columns of a side), for there are few of them; K goes in steps of
  256 bytes of a row, three of them in flight, or of 128 bytes, five of them: as gate and up, and
  down, need no spills.
* Beyond that one launch sorts the pairs, and blocks grow with what an expert may expect: 16 pairs
  while that is up to 24, 64 up to 96, then 128. Stages and tiles are such that a block's shared
  memory fits 99 KiB, the least that a target has.
"""

from __future__ import annotations

from typing import NamedTuple

from fuseline.codegen.gpu.experts import Find
from fuseline.codegen.gpu.kernel import next_power_of_two

MOST_ALIKE = 128
"""Pairs up to which a block looks through all of them for its own; with twice as many, sm_80 runs
out of registers for what it finds."""

SIXTEENS = 24
"""Pairs of an expert, in the mean, up to which its blocks hold 16."""

SIXTY_FOURS = 96
"""The same for blocks of 64."""


class Range(NamedTuple):
    """How ``first`` to ``last`` tokens (None: all from there on) are multiplied."""

    first: int
    last: int | None
    find: Find
    block_m: int

    @property
    def words(self) -> str:
        """How, for reports."""
        return {
            "one": "one pair to a block",
            "alike": "pairs of an expert to a block",
            "sorted": f"sorted pairs, {self.block_m} to a block",
            "all": f"{self.block_m} tokens to a block",
        }[self.find]


class Tile(NamedTuple):
    """The sizes of a block, and how it runs."""

    block_n: int
    block_k: int
    warps: int
    stages: int


def choose_ranges(
    *, experts: int, top: int, least: int = 0, most: int | None = None, invariant: bool = False
) -> list[Range]:
    """How so many pairs of each token find their experts, by the number of tokens; ``invariant``:
    in one way for all.
    """
    if invariant:
        return [Range(0, None, "sorted", 16)]
    ends: list[tuple[int | None, Find, int]] = [
        (1, "one", 1),
        (MOST_ALIKE // top, "alike", 16),
        (SIXTEENS * experts // top, "sorted", 16),
        (SIXTY_FOURS * experts // top, "sorted", 64),
        (None, "sorted", 128),
    ]
    return _ranges(ends, least, most)


def choose_shared(
    *, least: int = 0, most: int | None = None, invariant: bool = False
) -> list[Range]:
    """How the tokens of the shared branch are multiplied: all of them by the same matrix."""
    if invariant:
        return [Range(0, None, "all", 64)]
    ends: list[tuple[int | None, Find, int]] = [
        (1, "all", 1),
        (32, "all", 16),
        (256, "all", 64),
        (None, "all", 128),
    ]
    return _ranges(ends, least, most)


def _ranges(ends: list[tuple[int | None, Find, int]], least: int, most: int | None) -> list[Range]:
    found: list[Range] = []
    first = least
    for end, find, block in ends:
        last = most if end is None or (most is not None and most < end) else end
        if last is not None and last < first:
            continue
        found.append(Range(first, last, find, block))
        if last is None:
            break
        first = last + 1
    return found


def tiles(
    block_m: int, *, width: int, depth: int, size: int, sides: int, interleaved: bool, across: bool
) -> list[Tile]:
    """Sizes for a product, the likelier first.

    ``size`` is that of an element in bytes; ``across``: the columns of a matrix, and not its depth,
    lie side by side.
    """
    if block_m == 1:
        return _streams(width=width, depth=depth, size=size, interleaved=interleaved, across=across)
    wide = block_m == 16 and sides == 2
    plain = block_m > 16 and size == 4  # no tensor cores: operands of a step lie in registers
    narrow = plain and block_m == 64
    step = max(16, _step(depth, (256 if wide else 64 if narrow else 128) // size))
    if block_m == 16:
        shapes = [(32, 4, 4 if wide else 6), (64, 4, 3), (32, 4, 3)]
        shapes += [(32, 8, 3)] * (size == 4)  # operands of a step lie in registers: half as many
    elif plain:
        shapes = [(32 if sides == 2 else 64, 4 * block_m // 64, s) for s in (3, 2)]
    elif block_m == 64:
        shapes = [(64, 4, 3), (64, 8, 3), (64, 4, 2)]
    elif sides == 2:
        shapes = [(64, 8, 3), (64, 4, 3), (64, 8, 2)]
    else:
        shapes = [(128, 8, 3), (128, 4, 3), (64, 8, 3)]
    widest = max(16, next_power_of_two(width))
    return list(dict.fromkeys(Tile(min(n, widest), step, w, s) for n, w, s in shapes))


def _step(depth: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides the depth, if it is half of it or more;
    else as much as is needed, with a rest.
    """
    whole = depth & -depth
    wanted = min(most, next_power_of_two(depth))
    return whole if wanted // 2 <= whole < wanted else wanted


def _streams(*, width: int, depth: int, size: int, interleaved: bool, across: bool) -> list[Tile]:
    """Sizes for a single row: 16 elements of a matrix to a thread at once, or 32.

    Matrices that lie across are read in pieces of 128 bytes, so there are fewer blocks of them, and
    each takes more at once.
    """
    shapes = [(2048, 4), (4096, 8), (1024, 2), (4096, 4)]
    found: list[Tile] = []
    for elements, warps in [(8192, 8), (4096, 4), (2048, 4)] if across else shapes:
        if across:
            columns = min(128 // size, next_power_of_two(width) * (2 if interleaved else 1))
            columns = max(2 if interleaved else 1, columns)
            step = min(elements // columns, next_power_of_two(depth))
        else:
            step = _step(depth, 512)
            columns = min(max(2, elements // step), 2 * next_power_of_two(width))
        found.append(Tile(max(1, columns // 2 if interleaved else columns), step, warps, 2))
    return list(dict.fromkeys(found))


__all__ = ["Range", "Tile", "choose_ranges", "choose_shared", "tiles"]
