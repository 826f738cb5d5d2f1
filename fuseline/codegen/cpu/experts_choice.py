"""Which blocking routed experts use, and where the shared branch is computed, for how many pairs.

Measured on a Zen 3 core (AVX2, 32 KiB and 512 KiB caches) with weights colder than the caches: 32
experts of 512, 4 of them for a token, hidden 1024, a shared branch of 512;
`benchmarks/micro_experts.py` repeats it (`benchmarks/results/micro_experts*.json`).

* One kernel serves any number of tokens, for what counts is how many go to *one* expert, which is
  known only when it runs: 1 token streams six rows at once, 2 five, more three by four (the tiles
  of `linear_choice`). Up to 32 tokens K goes in blocks of 256; more take it in long blocks, at most
  64 of them at once.
* 1 to 8 tokens read weights at 83 to 94 % of the bandwidth in float32, 77 to 83 % in bfloat16 (one
  thread); matrices ``[K, N]`` at 81 to 88 % and 63 to 72 %. 128 tokens, 16 for an expert, do 44 and
  63 GFlop/s. Matrices ``[K, N]`` are packed by blocks from 9 tokens of an expert on.

Not measured here, but taken from `linear_choice` or from counting:

* The library's product is slower than ours below 96 to 192 tokens for one expert: it is not used.
* What the experts give to a token waits in scratch until it is added up: all columns of y that a
  worker has, in runs of 512, while that is little; 256 from 1024 pairs on (a run packs the rows
  again). Matrices ``[K, N]`` are streamed in whole rows, so runs are long there.
* The shared branch is one more expert in the same launches: nothing waits for it, and its rows fill
  the gaps that uneven experts leave.
"""

from __future__ import annotations

from typing import NamedTuple

FEW_PAIRS = 1024


class Choice(NamedTuple):
    """For ``first`` to ``last`` pairs of a token and an expert (``None``: all from there on)."""

    first: int
    last: int | None
    columns: int


def choose_experts(
    *, transposed: bool, least: int = 0, most: int | None = None, invariant: bool = False
) -> list[Choice]:
    """The choices for disjoint ranges that cover ``least`` to ``most`` pairs; ``invariant``: one
    for any number of them.
    """
    if invariant:
        return [Choice(0, None, 256)]
    few = Choice(0, FEW_PAIRS, 4096 if transposed else 512)
    many = Choice(FEW_PAIRS + 1, None, 256)
    found: list[Choice] = []
    for choice in (few, many):
        ends = [e for e in (choice.last, most) if e is not None]
        first, last = max(choice.first, least), min(ends, default=None)
        if last is None or first <= last:
            found.append(choice._replace(first=first, last=last))
    return found


__all__ = ["FEW_PAIRS", "Choice", "choose_experts"]
