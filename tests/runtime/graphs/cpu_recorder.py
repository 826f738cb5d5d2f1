"""Records and replays on the CPU, with the rules of CUDA graphs.

While recording nothing is computed. A replay computes again, on the addresses of the recording;
between replays everything that the recording allocated is NaN. Waiting for data is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fuseline.runtime.graphs.recorder import NotRecordable
from fuseline.runtime.native import Piece


@dataclass
class CpuRecording:
    """Calls, and the memory that was allocated for their results."""

    calls: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    memory: list[Tensor] = field(default_factory=list[Tensor])
    replays: int = 0

    def replay(self) -> None:
        """Compute everything again; what was computed the last time is gone."""
        assert self.calls or not self.memory, "a recording was replayed after its release"
        for memory in self.memory:
            spoil(memory)
        for call in self.calls:
            call()
        self.replays += 1

    def release(self) -> None:
        """Give up the memory."""
        self.calls.clear()
        self.memory.clear()


def spoil(memory: Tensor) -> None:
    """Fill memory with NaN, or with a number that is none of ours."""
    if memory.dtype.is_floating_point:
        memory.fill_(float("nan"))
    elif memory.dtype == torch.uint8:
        memory.fill_(255)
    elif memory.dtype != torch.bool:
        memory.fill_(-77)


class _Recording(TorchDispatchMode):
    """Writes ATen calls down."""

    def __init__(self, into: CpuRecording, refuse: Sequence[str]) -> None:
        cast("Any", super()).__init__()
        self.into = into
        self.refuse = refuse

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tags: Sequence[torch.Tag] = func.tags
        if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            raise RuntimeError(f"{func} waits for the device")
        if str(func) in self.refuse:
            raise RuntimeError(f"{func} is not permitted while recording")
        if func.is_view or "empty" in str(func):
            return self._noted(func(*args, **kwargs), fresh="empty" in str(func))
        if any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
            self.into.calls.append(lambda: cast("None", func(*args, **kwargs)))
            return self._written(func, args, kwargs)
        shapes = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        out = func(*shapes[0], **{**shapes[1], **self._meta(kwargs)})
        made = tree_map_only(Tensor, lambda t: torch.empty_like(t, device="cpu"), out)
        results = [made] if isinstance(made, Tensor) else [t for t in made if isinstance(t, Tensor)]
        self.into.memory += results

        def call() -> None:
            again = func(*args, **kwargs)
            found = [again] if isinstance(again, Tensor) else list(again)
            for target, source in zip(results, found, strict=True):
                target.copy_(source)

        self.into.calls.append(call)
        return made

    def _noted(self, made: Any, *, fresh: bool) -> Any:
        if fresh and isinstance(made, Tensor):
            self.into.memory.append(made)
        return made

    def _meta(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"device": "meta"} if kwargs.get("device") is not None else {}

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [
            given[a.name]
            for a in func._schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in given
        ]
        return written[0] if len(func._schema.returns) == 1 else tuple(written)


class CpuRecorder:
    """A `Recorder`; ``refuse`` are operators that it does not take, by name."""

    def __init__(self, refuse: Sequence[str] = (), *, fail: BaseException | None = None) -> None:
        self.refuse = refuse
        self.fail = fail
        self.made: list[CpuRecording] = []
        self.trimmed = 0

    @contextlib.contextmanager
    def record(self) -> Generator[CpuRecording]:
        """Write down what is done within."""
        if self.fail is not None:
            raise self.fail
        made = CpuRecording()
        self.made.append(made)

        def note(piece: Piece, tensors: Sequence[Tensor | None]) -> None:
            frozen = [None if t is None else t.data_ptr() for t in tensors]
            kept = list(tensors)

            def call() -> None:
                assert kept
                for slot, address in enumerate(frozen):
                    if address is not None:
                        piece.bind(slot, address)
                run(piece, [None] * len(frozen))

            made.calls.append(call)

        run = Piece.__call__
        try:
            with mock.patch.object(Piece, "__call__", note), _Recording(made, self.refuse):
                yield made
        except Exception as error:
            made.release()
            raise NotRecordable(str(error)) from error
        for memory in made.memory:
            spoil(memory)

    def busy(self) -> bool:
        """Nobody else records here."""
        return False

    def trim(self) -> None:
        """There is nothing to give back."""
        self.trimmed += 1

    def nbytes(self) -> int:
        """Bytes that recordings have allocated."""
        return sum(m.untyped_storage().nbytes() for made in self.made for m in made.memory)
