"""Which loop order and which blocking a linear product uses, for which numbers of tokens.

Measured on a Zen 3 core (AVX2, 32 KiB and 512 KiB caches, 25 GB/s, 102 GFlop/s) with weights colder
than the caches, K = 576 to 3072, in float32 and bfloat16; `benchmarks/micro_linear.py` repeats it.
Figures are the share of the ceiling (bandwidth up to 4 tokens, arithmetic from there on).

* 1 token: six far streams of weight rows (95 %; two streams 75 %). Prefetching by software costs
  20 %: the hardware follows six streams.
* 2 tokens: five rows by two (85 %); three by two, which 2 shares with more tokens, 75 %.
* 3 to 32 tokens: three rows by four, the largest tile in 16 registers. From 5 tokens on K is cut in
  blocks of 256, and the first panel asks for the next block ahead (float32, 8 tokens: 62 % against
  54 % without); 8 tokens of bfloat16 reach 80 %.
* As long as all of x (float32, packed) takes at most half of the second-level cache, streaming the
  weights once wins over grouping them.
* More tokens: blocks of 64 (x stays in the second-level cache: 85 % in bfloat16, against 70 % with
  160), groups of 48 rows, K in blocks of at most 1024 with the next rows asked for ahead.
* Where vectors have 16 floats (Zen 4): tiles of four rows by five tokens, and blocks of 128 where x
  stays bfloat16.
* float32 from 192 tokens on, from 96 if K is 2048 or more: the library's product is 5 to 15 %
  faster than ours, for it packs weights too; below that ours is, by 10 % (64 tokens) to 80 % (16).
* Weights ``[K, N]``: for 1 token six far streams again, in runs of 4096 columns; for more, rows
  side by side with the next ones asked for, in shorter runs (far streams take half as long again).
  float32 goes to the library from 9 tokens on; bfloat16 is turned strip by strip from 17 on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from fuseline.codegen.cpu.linear import (
    Activation,
    LinearColumnsKernel,
    LinearKernel,
    LinearLargeKernel,
    LinearSmallKernel,
)

MOST_STREAMED = 32
"""Beyond so many tokens weights are grouped, however narrow x is."""

_CACHED_X = 64 * 1024  # floats of packed x: half of a second-level cache of 512 KiB


class Choice(NamedTuple):
    """The kernel for token counts from ``first`` to ``last`` (``None``: all from there on)."""

    first: int
    last: int | None
    kernel: LinearKernel


def choose_linear(
    *,
    k: int,
    outputs: tuple[int, ...],
    dtype: str,
    x_dtype: str = "",
    weight_dtype: str = "",
    out_dtype: str = "",
    bias: bool = False,
    activation: Activation | None = None,
    gated: bool = False,
    residual: bool = False,
    min_tokens: int = 1,
    max_tokens: int | None = None,
    columns: bool = False,
    invariant: bool = False,
) -> list[Choice]:
    """The kernels of one product, for disjoint ranges that cover ``min_tokens`` to ``max_tokens``.

    Args:
        k: width of x.
        outputs: widths of the results, in the order of the weight's rows; gated: that of gate.
        dtype: what products round to; the other element types are ``dtype`` by default.
        x_dtype: elements of x.
        weight_dtype: elements of the weights and the bias.
        out_dtype: elements of the results.
        bias: whether there is one.
        activation: applied to the product; gated: to gate.
        gated: whether the weights are gate and up, and the result their product.
        residual: whether one is added.
        min_tokens: the smallest number of tokens other than 0 (which every kernel takes).
        max_tokens: the largest; ``None`` if there is no bound.
        columns: whether the weights lie ``[K, N]``.
        invariant: whether one kernel, the same for any range, is to serve all numbers of tokens.

    Raises:
        ValueError: there is no kernel for these element types or widths.
    """
    few = LinearColumnsKernel if columns else LinearSmallKernel
    small = few(
        k, outputs, dtype, x_dtype, weight_dtype, out_dtype, bias, activation, gated, residual
    )
    large = LinearLargeKernel(
        k, outputs, dtype, x_dtype, weight_dtype, out_dtype, bias, activation, gated, residual
    )
    if invariant:
        return [Choice(1, None, _for_all(small, large))]
    low = max(min_tokens, 1)
    high = None if max_tokens is None else max(max_tokens, low)
    return [
        choice
        for first, last, kernel in _ranges(small, large, just_two=(low, high) == (2, 2))
        if (choice := _within(first, last, kernel, low, high)) is not None
    ]


def most_streamed(k: int) -> int:
    """The largest number of tokens for which the weights are streamed."""
    return max(8, min(MOST_STREAMED, _CACHED_X // k))


def library_tokens(k: int) -> int:
    """From so many tokens on a float32 product is left to the library, where there is one."""
    return 96 if k >= 2048 else 192


def _ranges(
    small: LinearSmallKernel | LinearColumnsKernel, large: LinearLargeKernel, *, just_two: bool
) -> list[Choice]:
    """Every number of tokens and its kernel; 2 has its own only where no other number occurs."""
    if isinstance(small, LinearColumnsKernel):
        return _column_ranges(small, large)
    streamed = most_streamed(small.k)
    tile = {"rows": 5, "tokens": 2} if just_two else {"rows": 3, "tokens": 4}
    library = {small.x_dtype, small.weight_dtype} == {"f32"}
    return [
        Choice(1, 1, replace(small, rows=6, tokens=1)),
        Choice(2, streamed, replace(small, **tile, k_block=256, prefetch=256)),
        Choice(
            streamed + 1,
            None,
            replace(
                large,
                strip=48,
                token_block=64,
                k_block=even_block(large.k, 1024),
                prefetch=1,
                library_tokens=library_tokens(large.k) if library else 0,
            ),
        ),
    ]


def _for_all(
    small: LinearSmallKernel | LinearColumnsKernel, large: LinearLargeKernel
) -> LinearKernel:
    """The kernel that adds along K in one order, however many tokens there are.

    Rows of weights are grouped also for one token, and columns are streamed also for many.
    """
    if isinstance(small, LinearColumnsKernel):
        return replace(small, n_block=1024, token_block=32)
    return replace(large, token_block=64, k_block=even_block(large.k, 1024), prefetch=1)


def _column_ranges(small: LinearColumnsKernel, large: LinearLargeKernel) -> list[Choice]:
    """For weights ``[K, N]``: more tokens go to the library, or have the weights turned."""
    library = {small.x_dtype, small.weight_dtype} == {"f32"}
    most = 8 if library else 16
    many = replace(
        large,
        columns=True,
        k_block=even_block(large.k, 1024),
        prefetch=1,
        library_tokens=most + 1 if library else 0,
    )
    return [
        Choice(1, 1, replace(small, tokens=1, streams=6, far=True, n_block=4096)),
        Choice(2, 4, replace(small, n_block=1024)),
        Choice(5, most, small),
        Choice(most + 1, None, many),
    ]


def even_block(k: int, most: int) -> int:
    """``k`` in equal blocks of at most about ``most``, a multiple of 32."""
    blocks = -(-k // most)
    return -(-k // (blocks * 32)) * 32


def _within(
    first: int, last: int | None, kernel: LinearKernel, low: int, high: int | None
) -> Choice | None:
    """The part of a range that lies in ``low`` to ``high``."""
    first = max(first, low)
    last = high if last is None else last if high is None else min(last, high)
    if last is not None and first > last:
        return None
    if isinstance(kernel, LinearLargeKernel):  # one kernel for all ranges of many tokens
        bounded = replace(kernel, min_tokens=min(first, kernel.least_tokens))
    else:
        bounded = replace(kernel, min_tokens=first, max_tokens=last)
    return Choice(first, last, bounded)
