"""CUDA graphs of small programs: replays are fresh, results are kept, state is written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import fuseline
from tests.e2e.test_odd_mixtures import HIDDEN, Packed


def step(x: Tensor, weight: Tensor, cache: Tensor, at: Tensor) -> Tensor:
    y = torch.nn.functional.rms_norm(x, weight.shape, weight)
    cache.index_copy_(0, at, y)
    return y + cache.sum(0)


def with_sort(x: Tensor) -> tuple[Tensor, Tensor]:
    values, order = (x + x).sort()
    return values * values, order


def inputs(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 64, generator=generator)
    return x.cuda(), torch.randperm(16, generator=generator)[:tokens].cuda()


@pytest.mark.parametrize("graphs", ["none", "piecewise", "full", "auto"])
def test_state_is_written_and_results_are_kept(graphs: str) -> None:
    compiled: Callable[..., Tensor] = fuseline.compile(step, graphs=graphs)
    weight = torch.rand(64, device="cuda") + 0.5
    cache, plain = torch.zeros(16, 64, device="cuda"), torch.zeros(16, 64, device="cuda")
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for call in range(8):
            x, at = inputs(3, call)
            kept.append((compiled(x, weight, cache, at), step(x, weight, plain, at)))
            torch.testing.assert_close(cache, plain)
    for got, want in kept:
        torch.testing.assert_close(got, want)


def test_steps_of_torch_are_part_of_the_graph() -> None:
    compiled = fuseline.compile(with_sort, graphs="full")
    with torch.no_grad():
        for seed in range(5):
            x = inputs(1, seed)[0][0]
            for got, want in zip(compiled(x), with_sort(x), strict=True):
                torch.testing.assert_close(got, want)


def test_side_streams() -> None:
    """Launches follow torch's current stream."""
    compiled = fuseline.compile(with_sort, graphs="none")
    stream = torch.cuda.Stream()
    x = inputs(1, 3)[0][0]
    with torch.no_grad(), torch.cuda.stream(stream):
        found = [compiled(x) for _ in range(3)]
    stream.synchronize()
    for values, order in found:
        torch.testing.assert_close(values, with_sort(x)[0])
        assert torch.equal(order, with_sort(x)[1])


@pytest.mark.parametrize("graphs", ["piecewise", "full"])
def test_sizes_share_the_graphs_of_larger_ones(graphs: str) -> None:
    """Caches are written where the call says, and nowhere else."""
    compiled: Callable[..., Tensor] = fuseline.compile(step, graphs=graphs, dynamic=True)
    weight = torch.rand(64, device="cuda") + 0.5
    cache, plain = torch.zeros(16, 64, device="cuda"), torch.zeros(16, 64, device="cuda")
    with torch.no_grad():
        for call in range(4):
            for count in (3, 5, 6, 7, 9, 13, 11):
                x, at = inputs(count, call)
                found, want = compiled(x, weight, cache, at), step(x, weight, plain, at)
                torch.testing.assert_close(found, want)
                torch.testing.assert_close(cache, plain)
    records = cast("Any", compiled).report().graphs
    assert [r.kind for r in records] == ["bucket"] * 3  # for 4, 8 and 16 rows


@pytest.mark.parametrize("side_stream", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_a_shared_branch_at_the_same_time(tokens: int, side_stream: bool) -> None:
    model = Packed(8, 2).cuda()
    compiled = fuseline.compile(model, graphs="full", side_stream=side_stream)
    with torch.no_grad():
        for seed in range(20):
            cast("Any", torch).manual_seed(seed)
            x = torch.randn(tokens, HIDDEN, device="cuda")
            torch.testing.assert_close(compiled(x), model(x))
    assert cast("Any", compiled).report().count("moe") == 1
