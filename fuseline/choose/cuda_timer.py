"""Times work on an NVIDIA GPU by events of the device, with a cold cache."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from fuseline.choose.timing import Run, Sampler
from fuseline.runtime.graphs.recorder import CudaGraphs, NotRecordable


def cache_bytes(device: torch.device) -> int:
    """Bytes of a device's second-level cache."""
    properties: Any = cast("Any", torch.cuda).get_device_properties(device)
    return int(properties.L2_cache_size)


class CudaTimer:
    """A `Timer` for one device.

    Before each sample more memory is written than its cache holds; that also gives the host the
    time to hand over the work, so that the device does not wait between the two events. The work is
    replayed from a CUDA graph, as in a program that runs from graphs. What cannot be recorded is
    refused: it would end the graph that it stands in, and the time of that is not to be seen here.

    Memory is taken when the first work is prepared: mostly all that is asked for is known already.

    Args:
        device: with its number.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def _graphs(self) -> CudaGraphs:
        return CudaGraphs(self.device)

    @cached_property
    def _flush(self) -> Tensor:
        nbytes = 2 * max(cache_bytes(self.device), 1 << 20)
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def prepare(self, run: Run) -> Sampler:
        """As `Timer.prepare`."""
        flush = self._flush
        run()
        torch.cuda.synchronize(self.device)
        try:
            with self._graphs.record() as recording:
                run()
        except NotRecordable as error:
            raise RuntimeError(f"not recordable: {error}") from error

        def sample() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            recording.replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e-3

        sample()
        return sample

    def now(self) -> float:
        """As `Timer.now`."""
        return time.perf_counter()


__all__ = ["CudaTimer", "cache_bytes"]
