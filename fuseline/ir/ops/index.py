"""Gather and scatter ops. Indices are in bounds; negative ones count from the end as in torch.

What is read by indices costs the bytes that are read, and not those of all that could be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.ir.core import (
    Cost,
    Op,
    OpError,
    Trait,
    Value,
    attribute,
    operand,
    result,
    variadic_operand,
)
from fuseline.ir.types import Dim, TensorType, broadcast, dim


class Embedding(Op, name="embedding", traits={Trait.PURE}):
    """Rows of ``weight`` ``[V, D]`` by ``indices`` ``[...]``: ``[..., D]``."""

    weight: Value = operand()
    indices: Value = operand()
    y: Value = result()

    def infer(self) -> TensorType:
        if self.weight.tensor.rank != 2:
            raise OpError(self, f"weight is {self.weight.type}, expected two dims")
        return self.weight.tensor.with_shape((*self.indices.shape, self.weight.shape[1]))

    def cost(self) -> Cost:
        return Cost(dim(2 * self.y.tensor.nbytes + self.indices.tensor.nbytes), 0)

    @staticmethod
    def reference(weight: Tensor, indices: Tensor) -> Tensor:
        return F.embedding(indices, weight)


class Index(Op, name="index", traits={Trait.PURE}):
    """Advanced indexing: broadcast ``indices`` select along ``axes``.

    As in torch, the index dims take the place of the first axis when the axes are adjacent, else
    they come first.
    """

    x: Value = operand()
    indices: tuple[Value, ...] = variadic_operand()
    axes: tuple[int, ...] = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        if len(self.indices) != len(self.axes) or not self.axes:
            raise OpError(self, f"{len(self.indices)} indices for axes {self.axes}")
        selected = broadcast([i.shape for i in self.indices])
        rest: list[Dim] = [d for a, d in enumerate(self.x.shape) if a not in self.axes]
        at = self.place
        return self.x.tensor.with_shape((*rest[:at], *selected, *rest[at:]))

    @property
    def place(self) -> int:
        """The axis of the result where the index dims begin."""
        adjacent = self.axes == tuple(range(self.axes[0], self.axes[0] + len(self.axes)))
        return self.axes[0] if adjacent else 0

    def cost(self) -> Cost:
        return Cost(dim(2 * self.y.tensor.nbytes + sum(i.tensor.nbytes for i in self.indices)), 0)

    @staticmethod
    def reference(x: Tensor, indices: tuple[Tensor, ...], *, axes: tuple[int, ...]) -> Tensor:
        return x[_key(x.dim(), indices, axes)]


def _key(
    rank: int, indices: tuple[Tensor, ...], axes: tuple[int, ...]
) -> tuple[slice | Tensor, ...]:
    key: list[slice | Tensor] = [slice(None)] * rank
    for axis, index in zip(axes, indices, strict=True):
        key[axis] = index
    return tuple(key)


class IndexSelect(Op, name="index_select", traits={Trait.PURE}):
    """Slices of ``x`` along ``axis`` by a 1-d ``index``."""

    x: Value = operand()
    index: Value = operand()
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        shape = list(self.x.shape)
        shape[self.axis] = self.index.tensor.numel
        return self.x.tensor.with_shape(shape)

    def cost(self) -> Cost:
        return Cost(dim(2 * self.y.tensor.nbytes + self.index.tensor.nbytes), 0)

    @staticmethod
    def reference(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
        return torch.index_select(x, axis, index)


class Gather(Op, name="gather", traits={Trait.PURE}):
    """``y[i][j] = x[i][index[i][j]]`` along ``axis``, as torch.gather."""

    x: Value = operand()
    index: Value = operand()
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor.with_shape(self.index.shape)

    def cost(self) -> Cost:
        return Cost(dim(2 * self.y.tensor.nbytes + self.index.tensor.nbytes), 0)

    @staticmethod
    def reference(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
        return torch.gather(x, axis, index)


class Scatter(Op, name="scatter", traits={Trait.PURE, Trait.MOVES}):
    """``x`` with ``y[i][index[i][j]] = src[i][j]`` along ``axis``, as torch.scatter."""

    x: Value = operand()
    index: Value = operand()
    src: Value = operand()
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor

    @staticmethod
    def reference(x: Tensor, index: Tensor, src: Tensor, *, axis: int) -> Tensor:
        return torch.scatter(x, axis, index, src.expand(index.shape))


class IndexPut(Op, name="index_put", traits={Trait.PURE}):
    """``x`` with ``x[indices] = src`` (added where ``accumulate``); axes as in `Index`."""

    x: Value = operand()
    indices: tuple[Value, ...] = variadic_operand()
    src: Value = operand()
    axes: tuple[int, ...] = attribute()
    accumulate: bool = attribute(default=False)
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, self.src.tensor.numel if self.accumulate else 0)

    @staticmethod
    def reference(
        x: Tensor,
        indices: tuple[Tensor, ...],
        src: Tensor,
        *,
        axes: tuple[int, ...],
        accumulate: bool,
    ) -> Tensor:
        key: list[Tensor | None] = [None] * x.dim()
        for axis, index in zip(axes, indices, strict=True):
            key[axis] = index
        while key and key[-1] is None:
            key.pop()
        return torch.ops.aten.index_put.default(x, key, src, accumulate)


class IndexCopy(Op, name="index_copy", traits={Trait.PURE, Trait.MOVES}):
    """``x`` with the slices ``index`` (1-d) along ``axis`` replaced by those of ``src``."""

    x: Value = operand()
    index: Value = operand()
    src: Value = operand()
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor

    @staticmethod
    def reference(x: Tensor, index: Tensor, src: Tensor, *, axis: int) -> Tensor:
        return torch.index_copy(x, axis, index.reshape(-1), src)


class SliceScatter(Op, name="slice_scatter", traits={Trait.PURE, Trait.MOVES}):
    """``x`` with the slice ``start..stop`` (by ``step``) along ``axis`` replaced by ``src``."""

    x: Value = operand()
    src: Value = operand()
    axis: int = attribute()
    start: Dim = attribute(default=0)
    stop: Dim = attribute()
    step: int = attribute(default=1)
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor

    @staticmethod
    def reference(x: Tensor, src: Tensor, *, axis: int, start: int, stop: int, step: int) -> Tensor:
        return torch.slice_scatter(x, src, axis, start, stop, step)
