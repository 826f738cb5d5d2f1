"""Reads of, and in-place writes to, state that outlives a call."""

from __future__ import annotations

import torch
from torch import Tensor

from fuseline.ir.core import Cost, Op, OpError, Trait, Value, attribute, operand, result
from fuseline.ir.types import BufferType, Dim, TensorType, dim


class BufferOp(Op):
    """Base of the ops on a buffer operand."""

    buffer: Value = operand()

    def check_buffer(self) -> TensorType:
        """The element type and dims of the buffer operand."""
        if not isinstance(self.buffer.type, BufferType):
            raise OpError(self, f"{self.buffer.type} is not a buffer")
        return self.buffer.type.tensor


class Read(BufferOp, name="read", traits={Trait.READS}):
    """What the buffer holds now. Not a copy: the planner sees to it that no write comes between."""

    y: Value = result()

    def infer(self) -> TensorType:
        return self.check_buffer()

    def cost(self) -> Cost:
        return Cost(0, 0)

    @staticmethod
    def reference(buffer: Tensor) -> Tensor:
        return buffer.clone()


class Write(BufferOp, name="write", traits={Trait.WRITES}):
    """Replace all that the buffer holds by ``x``."""

    x: Value = operand()

    def infer(self) -> tuple[()]:
        if self.x.shape != self.check_buffer().shape:
            raise OpError(self, f"{self.x.type} does not fit {self.buffer.type}")
        return ()

    def cost(self) -> Cost:
        return Cost(dim(2 * self.x.tensor.nbytes), 0)

    @staticmethod
    def reference(buffer: Tensor, x: Tensor) -> None:
        buffer.copy_(x)


class PartWrite(BufferOp):
    """Base of the writes of slices along ``axis``, over the whole of the other dims or a part.

    In the other dims the part is as large as ``src`` and begins at ``origin``: one number for each
    dim, that of ``axis`` being 0; () where all are 0.
    """

    def check_part(self, src: Value, axis: int, origin: tuple[Dim, ...]) -> tuple[()]:
        """That there is such a part, as far as its sizes are known."""
        kind = self.check_buffer()
        if src.tensor.rank != kind.rank or not 0 <= axis < kind.rank:
            raise OpError(self, f"{src.type} does not fit axis {axis} of {kind}")
        first = origin or (0,) * kind.rank
        if len(first) != kind.rank or first[axis] != 0:
            raise OpError(self, f"origin {origin} in {kind} along axis {axis}")
        for a, (start, extent, size) in enumerate(zip(first, src.shape, kind.shape, strict=True)):
            end = dim(start + extent)
            if a != axis and isinstance(end, int) and isinstance(size, int) and end > size:
                raise OpError(self, f"{src.type} does not fit {kind} from {start} on in dim {a}")
        return ()


def _part(buffer: Tensor, src: Tensor, axis: int, origin: tuple[int, ...]) -> Tensor:
    """The part of a buffer that a write along an axis is about."""
    for a, extent in enumerate(src.shape):
        if a != axis:
            buffer = buffer.narrow(a, origin[a] if origin else 0, extent)
    return buffer


class IndexWrite(PartWrite, name="index_write", traits={Trait.WRITES}):
    """Replace the slices ``index`` (1-d) of the buffer along ``axis`` by those of ``src``.

    Where an index occurs twice, the last counts.
    """

    index: Value = operand()
    src: Value = operand()
    axis: int = attribute()
    origin: tuple[Dim, ...] = attribute(default=())

    def infer(self) -> tuple[()]:
        return self.check_part(self.src, self.axis, self.origin)

    def cost(self) -> Cost:
        return Cost(dim(2 * self.src.tensor.nbytes + self.index.tensor.nbytes), 0)

    @staticmethod
    def reference(
        buffer: Tensor, index: Tensor, src: Tensor, *, axis: int, origin: tuple[int, ...]
    ) -> None:
        _part(buffer, src, axis, origin).index_copy_(axis, index.reshape(-1), src)


class SliceWrite(PartWrite, name="slice_write", traits={Trait.WRITES}):
    """Replace the slice ``start..stop`` of the buffer along ``axis`` by ``src``."""

    src: Value = operand()
    axis: int = attribute()
    start: Dim = attribute(default=0)
    stop: Dim = attribute()
    origin: tuple[Dim, ...] = attribute(default=())

    def infer(self) -> tuple[()]:
        return self.check_part(self.src, self.axis, self.origin)

    def cost(self) -> Cost:
        return Cost(dim(2 * self.src.tensor.nbytes), 0)

    @staticmethod
    def reference(
        buffer: Tensor,
        src: Tensor,
        *,
        axis: int,
        start: int,
        stop: int,
        origin: tuple[int, ...],
    ) -> None:
        _part(buffer, src, axis, origin).narrow(axis, start, stop - start).copy_(src)


class ShiftWrite(BufferOp, name="shift_write", traits={Trait.WRITES}):
    """Drop the first slices of the buffer along ``axis`` and put those of ``src`` behind the rest.

    As many are dropped as ``src`` has: a window over a sequence moves on.
    """

    src: Value = operand()
    axis: int = attribute()

    def infer(self) -> tuple[()]:
        kind = self.check_buffer()
        if self.src.tensor.rank != kind.rank or not 0 <= self.axis < kind.rank:
            raise OpError(self, f"{self.src.type} does not fit axis {self.axis} of {kind}")
        return ()

    def cost(self) -> Cost:
        return Cost(dim(2 * self.buffer.tensor.nbytes), 0)

    @staticmethod
    def reference(buffer: Tensor, src: Tensor, *, axis: int) -> None:
        count = src.shape[axis]
        rest = buffer.narrow(axis, count, buffer.shape[axis] - count)
        buffer.copy_(torch.cat([rest, src], axis))
