"""The ranking: each term of the estimate by itself, on configurations that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fuseline.choose.model import MARGIN, Facts, first_of, mean, seconds
from fuseline.codegen.targets import GPU_TARGETS, TARGETS, Target

H100 = TARGETS["sm_90"]
MB = 1 << 20
EACH = pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda t: t.name)

PLAIN = Facts(blocks=4 * 132, warps=8, stages=1, bytes=64 * MB, registers=32, shared=0)
"""A wave that fills an H100, and has enough in flight."""


@EACH
def test_many_bytes_take_what_the_bandwidth_allows(target: Target) -> None:
    full = target.rates.multiprocessors * target.occupancy(8, 32, 0)
    facts = replace(PLAIN, blocks=full, bytes=1 << 30)
    bare = (1 << 30) / target.rates.bandwidth
    assert bare < seconds(facts, target) < 1.02 * bare


def test_nothing_moved_takes_a_launch_and_a_latency() -> None:
    rates = H100.rates
    assert seconds(replace(PLAIN, bytes=0), H100) == pytest.approx(rates.launch + rates.latency)


def test_a_grid_without_blocks_takes_no_time() -> None:
    assert seconds(replace(PLAIN, blocks=0), H100) == 0


@EACH
def test_too_few_blocks_leave_bandwidth_unused(target: Target) -> None:
    few = replace(PLAIN, blocks=target.rates.multiprocessors // 8, warps=32)
    many = replace(PLAIN, blocks=8 * few.blocks, warps=32)
    assert seconds(few, target) > 3 * seconds(many, target)


def test_a_partial_last_wave_costs_nearly_a_wave() -> None:
    """Blocks of 8 warps and 128 registers: two to a multiprocessor, 264 in a wave."""
    dense = replace(PLAIN, registers=128, blocks=264)
    more = replace(dense, blocks=265, bytes=dense.bytes * 265 // 264)
    assert seconds(more, H100) > seconds(dense, H100) + H100.rates.latency


def test_a_last_wave_of_most_blocks_costs_little_more_than_their_bytes() -> None:
    dense = replace(PLAIN, registers=128, blocks=264)
    more = replace(dense, blocks=520, bytes=dense.bytes * 520 // 264)
    assert seconds(more, H100) < 1.05 * seconds(dense, H100) * 520 / 264


def test_occupancy_too_low_to_keep_loads_in_flight() -> None:
    """One block of four warps a multiprocessor asks for 8 KB, of the 20 that are needed."""
    low = Facts(1320, 4, 1, 64 * MB, registers=32, shared=200 * 1024)
    high = replace(low, shared=0)
    assert seconds(low, H100) > 2 * seconds(high, H100)


def test_occupancy_does_not_matter_where_stages_keep_loads_in_flight() -> None:
    low = Facts(1320, 4, 4, 64 * MB, registers=32, shared=200 * 1024)
    high = replace(low, stages=1, shared=0)
    assert seconds(low, H100) < (1 + MARGIN) * seconds(high, H100)


def test_registers_cost_occupancy() -> None:
    assert seconds(replace(PLAIN, warps=4, registers=255), H100) > seconds(
        replace(PLAIN, warps=4, registers=32), H100
    )


@EACH
@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("blocks", [1, 33, 1000, 4096])
@pytest.mark.parametrize("warps", [1, 4, 16])
def test_before_it_is_built_an_estimate_is_the_least_that_it_may_become(
    target: Target, stages: int, blocks: int, warps: int
) -> None:
    guess = Facts(blocks, warps, stages, 8 * MB)
    for registers in (32, 64, 128):
        for shared in (0, 32 * 1024, 90 * 1024):
            built = replace(guess, registers=registers, shared=shared)
            if target.occupancy(warps, registers, shared):
                # a wave more or less can go either way, by the latency that each begins with
                assert seconds(guess, target) <= seconds(built, target) * 1.25


def test_ties_keep_the_order_and_grounds_change_it() -> None:
    assert first_of([1.0, 1.0, 1.0]) == 0
    assert first_of([1.0 + MARGIN, 1.0]) == 0
    assert first_of([1.0 + 2 * MARGIN, 1.0, 1.0]) == 1
    assert first_of([3.0, 1.05, 1.0]) == 1


def test_sizes_count_alike() -> None:
    assert mean([1e-6, 1e-4]) == pytest.approx(1e-5)
    assert mean([0.0, 1.0]) == 0.0
