"""What records device work and replays it."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from fuseline import _torch, errors


class NotRecordable(Exception):
    """Something was done that a recording cannot hold; nothing of the recording is kept."""


class Recording(Protocol):
    """Device work that can be done again."""

    def replay(self) -> None:
        """Do it again, on the stream that is current."""
        ...

    def release(self) -> None:
        """Give up its memory."""
        ...


class Recorder(Protocol):
    """Makes recordings; all of one recorder share a pool of memory."""

    def record(self) -> contextlib.AbstractContextManager[Recording]:
        """Within it nothing is executed, only written down; the recording is good after it.

        Raises:
            NotRecordable: in place of what was raised within, or where the work was refused.

        """
        ...

    def busy(self) -> bool:
        """Whether somebody else is recording what this thread does now."""
        ...

    def trim(self) -> None:
        """Give back memory that nothing uses."""
        ...

    def nbytes(self) -> int:
        """Bytes of memory that recordings use."""
        ...


@dataclass(eq=False)
class _CudaRecording:
    graph: Any
    alive: weakref.WeakSet[_CudaRecording]
    """Those that have the same pool."""

    def replay(self) -> None:
        self.graph.replay()

    def release(self) -> None:
        self.alive.discard(self)
        self.graph.reset()


class CudaGraphs:
    """Recordings that are CUDA graphs, made by torch: its allocator and libraries know of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pools: list[Any] = []
        self._renew()

    def _renew(self) -> None:
        """A new pool and stream: those of a capture that went wrong are not to be used again."""
        self._pools.append(cast("Any", torch.cuda).graph_pool_handle())
        self._alive: weakref.WeakSet[_CudaRecording] = weakref.WeakSet()
        self._used = False
        self._stream = torch.cuda.Stream(self.device)

    def _pool(self) -> Any:
        """The pool for the next recording. The allocator gives one up with the last recording that
        used it, and refuses it then.
        """
        if self._used and not self._alive:
            self._pools[-1] = cast("Any", torch.cuda).graph_pool_handle()
        self._used = True
        return self._pools[-1]

    @contextlib.contextmanager
    def record(self) -> Generator[Recording]:
        """Capture what is done within, on a stream of its own."""
        graph: Any = torch.cuda.CUDAGraph()
        recording = _CudaRecording(graph, self._alive)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        done = False
        try:
            with torch.cuda.stream(self._stream), _no_collection():
                graph.capture_begin(pool=self._pool(), capture_error_mode="thread_local")
                yield recording
                graph.capture_end()
            self._alive.add(recording)
            done = True
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, errors.FuselineError) as error:
            raise NotRecordable(first_line(error)) from error
        finally:
            if not done:
                self._abandon(graph)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _abandon(self, graph: Any) -> None:
        """End a capture that went wrong, whatever is said to that, and take leave of its pool."""
        with contextlib.suppress(Exception), torch.cuda.stream(self._stream):
            graph.capture_end()
        with contextlib.suppress(Exception):
            _torch.end_allocations(self.device, self._pools[-1])
        with contextlib.suppress(Exception):
            graph.reset()
        self._renew()

    def busy(self) -> bool:
        """Whether the current stream is being captured."""
        return torch.cuda.is_current_stream_capturing()

    def trim(self) -> None:
        """Have the allocator give back what it keeps: it does not do so within a capture."""
        torch.cuda.empty_cache()

    def nbytes(self) -> int:
        """Bytes that are allocated in the pools."""
        snapshot: Any = cast("Any", torch.cuda).memory_snapshot
        segments = [segment for pool in self._pools for segment in snapshot(pool)]
        return sum(int(segment["allocated_size"]) for segment in segments)


@contextlib.contextmanager
def _no_collection() -> Generator[None]:
    """Within it no cycle of garbage is looked for: a tensor in one may wait for the device when it
    dies, which ends a capture.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def first_line(error: BaseException) -> str:
    """What an error says first, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
