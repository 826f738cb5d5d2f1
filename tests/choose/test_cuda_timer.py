"""What the timer of GPUs does before it times; the times themselves need a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import pytest
import torch

from fuseline.choose import cuda_timer
from fuseline.choose.cuda_timer import CudaTimer
from fuseline.choose.timing import Budget, measure
from fuseline.runtime.graphs.recorder import NotRecordable, Recording


class NoGraphs:
    """Records nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextlib.contextmanager
    def record(self) -> Generator[Recording]:
        raise NotRecordable("it waits for the device")
        yield


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> CudaTimer:
    """A timer whose device is the host."""

    def nothing(_: object) -> int:
        return 0

    monkeypatch.setattr(cuda_timer, "CudaGraphs", NoGraphs)
    monkeypatch.setattr(cuda_timer, "cache_bytes", nothing)
    monkeypatch.setattr(torch.cuda, "synchronize", nothing)
    return CudaTimer(torch.device("cpu"))


def test_what_cannot_be_recorded_is_not_offered(timer: CudaTimer) -> None:
    found = measure(timer, {"plain torch": lambda: None}, Budget())
    assert found is not None
    assert found["plain torch"].failed == "not recordable: it waits for the device"


def test_memory_is_taken_for_the_first_work(
    timer: CudaTimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 100 MiB")

    monkeypatch.setattr(cuda_timer, "cache_bytes", full)
    ran: list[str] = []
    found = measure(CudaTimer(timer.device), {"a": lambda: ran.append("a")}, Budget())
    assert found is not None
    assert found["a"].failed.startswith("CUDA out of memory")
    assert not ran
