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


class IndexWrite(BufferOp, name="index_write", traits={Trait.WRITES}):
    """Replace the slices ``index`` (1-d) of the buffer along ``axis`` by those of ``src``."""

    index: Value = operand()
    src: Value = operand()
    axis: int = attribute()

    def infer(self) -> tuple[()]:
        kind = self.check_buffer()
        if self.src.tensor.rank != kind.rank or not 0 <= self.axis < kind.rank:
            raise OpError(self, f"{self.src.type} does not fit axis {self.axis} of {kind}")
        return ()

    def cost(self) -> Cost:
        return Cost(dim(2 * self.src.tensor.nbytes + self.index.tensor.nbytes), 0)

    @staticmethod
    def reference(buffer: Tensor, index: Tensor, src: Tensor, *, axis: int) -> None:
        buffer.index_copy_(axis, index.reshape(-1), src)


class SliceWrite(BufferOp, name="slice_write", traits={Trait.WRITES}):
    """Replace the slice ``start..stop`` of the buffer along ``axis`` by ``src``."""

    src: Value = operand()
    axis: int = attribute()
    start: Dim = attribute(default=0)
    stop: Dim = attribute()

    def infer(self) -> tuple[()]:
        kind = self.check_buffer()
        if self.src.tensor.rank != kind.rank or not 0 <= self.axis < kind.rank:
            raise OpError(self, f"{self.src.type} does not fit axis {self.axis} of {kind}")
        return ()

    def cost(self) -> Cost:
        return Cost(dim(2 * self.src.tensor.nbytes), 0)

    @staticmethod
    def reference(buffer: Tensor, src: Tensor, *, axis: int, start: int, stop: int) -> None:
        buffer.narrow(axis, start, stop - start).copy_(src)


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
