"""Where the benchmarks run: a GPU, its graphs and its events; or the CPU, to try them out.

Device time is that of calls that were captured in one CUDA graph, replayed between two events: no
call waits for the host. On the CPU the same calls are made plainly, and a clock is read.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.common import Json, Samples, first_line

Run = Callable[[], object]

SAMPLE_S = 5e-4
"""Seconds of device time that a sample lasts at least: events tell half a microsecond."""

SETS = 16
"""Most sets of inputs that calls take turns with."""

_torch_cuda: Any = torch.cuda


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU; ``quick`` says that nothing is to be learnt but whether all works."""

    name: str
    quick: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether there are graphs, events and streams."""
        return self.name == "cuda"

    @cached_property
    def l2_bytes(self) -> int:
        """Bytes of the last cache before the memory; on the CPU a guess."""
        if not self.on_gpu:
            return 1 << 16
        return int(getattr(_torch_cuda.get_device_properties(0), "L2_cache_size", 0)) or 50 << 20

    @property
    def rounds(self) -> int:
        """Samples of each contender."""
        return 3 if self.quick else 20

    def random(self, *shape: int, seed: int) -> Tensor:
        """Normal numbers in bfloat16, the same in every run."""
        generator = torch.Generator(self.name).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.name, dtype=torch.bfloat16)

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def waited(self, run: Run) -> Run:
        """A run with the wait for it."""

        def whole() -> None:
            run()
            self.wait()

        return whole

    def works(self) -> bool:
        """Whether the device still does anything: after an illegal access it does not, until the
        process ends.
        """
        try:
            self.wait()
        except RuntimeError:
            return False
        return True

    def tidy(self) -> None:
        """Give back memory that a part has held, and forget what was compiled for it."""
        torch.compiler.reset()
        gc.collect()
        if self.on_gpu:
            with contextlib.suppress(RuntimeError):  # a device that is lost
                torch.cuda.empty_cache()

    def machine(self) -> Json:
        """What the figures depend on, in words that name no host, user or directory."""
        if not self.on_gpu:
            return {"gpu": "no GPU"}
        about = _torch_cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found: Json = {
            "gpu": about.name,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "memory_bytes": about.total_memory,
            "l2_bytes": self.l2_bytes,
            "driver": first_line(query),
        }
        with contextlib.suppress(Exception):  # needs a package that torch does not depend on
            found["clock_mhz"] = _torch_cuda.clock_rate()
        return found

    def captured(self, runs: Sequence[Run], keep: int) -> Run:
        """Calls as one: replays them on a GPU, in their order.

        Results of the last ``keep`` are held while it is captured, so that one call does not write
        where the one before it has.
        """
        if not self.on_gpu:
            return lambda: deque((run() for run in runs), maxlen=1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for run in runs[: max(3, keep)]:
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph: Any = _torch_cuda.CUDAGraph()
        kept = deque[object](maxlen=keep)
        with _torch_cuda.graph(graph):
            for run in runs:
                kept.append(run())
        return cast("Run", graph.replay)

    def seconds(self, run: Run, times: int = 1) -> float:
        """Device time of calls one behind the other."""
        if not self.on_gpu:
            started = time.perf_counter()
            for _ in range(times):
                run()
            return time.perf_counter() - started
        first, last = (_torch_cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(times):
            run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def samples(self, runs: Mapping[str, Run], calls: int = 1) -> Samples:
        """Device seconds of single calls, by turns, of what makes so many of them at once."""
        times: dict[str, int] = {}
        for name, run in runs.items():
            self.seconds(run)
            one = statistics.median(self.seconds(run) for _ in range(3))
            times[name] = 1 if self.quick else max(1, int(SAMPLE_S / one))
        names = list(runs)
        found: Samples = {name: [] for name in names}
        for number in range(self.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                taken = self.seconds(runs[name], times[name])
                found[name].append(taken / times[name] / calls)
        return found

    def sets(self, nbytes: int) -> int:
        """How many sets of inputs push one another out of the cache, where so many do."""
        return min(SETS, max(2, -(-3 * self.l2_bytes // nbytes)))
