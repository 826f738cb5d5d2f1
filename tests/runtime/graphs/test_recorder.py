"""The pools of CUDA graphs, on an allocator that is made up: no GPU runs."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch

from fuseline.runtime.graphs.recorder import CudaGraphs, NotRecordable

DEVICE = torch.device("cuda", 0)


class Allocator:
    """Gives a pool up with the last graph that used it, and refuses it then; as torch's."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.users: dict[int, int] = {}
        self.dead: set[int] = set()

    def handle(self) -> int:
        return next(self.numbers)

    def take(self, pool: int) -> None:
        if pool in self.dead:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.users[pool] = self.users.get(pool, 0) + 1

    def leave(self, pool: int) -> None:
        self.users[pool] -= 1
        if not self.users[pool]:
            self.dead.add(pool)


ALLOCATOR = Allocator()


class Graph:
    """A graph that holds its pool until it is reset, or dies."""

    pool: int | None = None

    def capture_begin(self, pool: int, **_: Any) -> None:
        ALLOCATOR.take(pool)
        self.pool = pool

    def capture_end(self) -> None:
        pass

    def reset(self) -> None:
        if self.pool is not None:
            ALLOCATOR.leave(self.pool)
            self.pool = None

    __del__ = reset


class Stream:
    """A stream of nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: object) -> None:
        pass


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "current_stream", Stream)
    monkeypatch.setattr(cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(cuda, "graph_pool_handle", ALLOCATOR.handle)
    return CudaGraphs(DEVICE)


def record(graphs: CudaGraphs) -> Any:
    with graphs.record() as recording:
        pass
    return recording


def test_recordings_that_live_share_a_pool(graphs: CudaGraphs) -> None:
    first, second = record(graphs), record(graphs)
    assert first.graph.pool == second.graph.pool
    first.release()
    assert record(graphs).graph.pool == second.graph.pool


@pytest.mark.parametrize("how", ["released", "dead"])
def test_a_pool_that_was_given_up_is_not_used_again(how: str, graphs: CudaGraphs) -> None:
    recording = record(graphs)
    before = recording.graph.pool
    if how == "released":
        recording.release()
    else:
        del recording
    again = record(graphs)
    assert again.graph.pool != before


def test_behind_one_that_fails_all_is_new(graphs: CudaGraphs) -> None:
    kept = record(graphs)
    with pytest.raises(NotRecordable, match="refused"), graphs.record():
        raise RuntimeError("refused")
    assert record(graphs).graph.pool != kept.graph.pool
