"""Times work on an NVIDIA GPU by events of the device, with a cold cache."""

from __future__ import annotations

import time
from typing import Any, cast

import torch

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
    replayed from a CUDA graph, as in a program that runs from graphs, unless it cannot be
    recorded: then its time has the host's share in it, as it will when it runs between graphs.

    Args:
        device: with its number.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs = CudaGraphs(device)
        nbytes = 2 * max(cache_bytes(device), 1 << 20)
        self._flush = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def prepare(self, run: Run) -> Sampler:
        """As `Timer.prepare`."""
        run()
        torch.cuda.synchronize(self.device)
        work: Run = run
        try:
            with self._graphs.record() as recording:
                run()
            work = recording.replay
        except NotRecordable:
            pass

        def sample() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            begin.record()
            work()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e-3

        sample()
        return sample

    def now(self) -> float:
        """As `Timer.now`."""
        return time.perf_counter()


__all__ = ["CudaTimer", "cache_bytes"]
