"""What records device work and replays it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch


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

    def nbytes(self) -> int:
        """Bytes of memory that the pool holds."""
        ...


@dataclass
class _CudaRecording:
    graph: Any

    def replay(self) -> None:
        self.graph.replay()

    def release(self) -> None:
        self.graph.reset()


class CudaGraphs:
    """Recordings that are CUDA graphs, made by torch: its allocator and libraries know of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = cast("Any", torch.cuda).graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    @contextlib.contextmanager
    def record(self) -> Generator[Recording]:
        """Capture what is done within, on a stream of its own."""
        graph: Any = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        begun = False
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                begun = True
                yield _CudaRecording(graph)
                begun = False
                graph.capture_end()
        except torch.OutOfMemoryError:
            self._abandon(graph, begun)
            raise
        except Exception as error:
            self._abandon(graph, begun)
            raise NotRecordable(str(error).splitlines()[0]) from error
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _abandon(self, graph: Any, begun: bool) -> None:
        """End a capture that went wrong, whatever it says to that."""
        with contextlib.suppress(Exception), torch.cuda.stream(self._stream):
            if begun:
                graph.capture_end()
        with contextlib.suppress(Exception):
            graph.reset()

    def nbytes(self) -> int:
        """Bytes of the segments of the pool."""
        snapshot: list[Any] = cast("Any", torch.cuda).memory_snapshot(self._pool)
        return sum(int(segment["total_size"]) for segment in snapshot)
