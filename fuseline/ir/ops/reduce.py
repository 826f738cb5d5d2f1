"""Reductions, scans, selection and softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from fuseline.ir.core import Cost, Op, OpError, Trait, Value, attribute, operand, result
from fuseline.ir.types import Dim, DType, TensorType


class Reduce(Op):
    """Base of the reductions over ``axes``; reduced dims are kept as 1 where ``keepdim``."""

    traits = frozenset({Trait.PURE})

    x: Value = operand()
    axes: tuple[int, ...] = attribute()
    keepdim: bool = attribute(default=False)
    y: Value = result()

    def infer(self) -> TensorType:
        rank = self.x.tensor.rank
        if any(not 0 <= a < rank for a in self.axes):
            raise OpError(self, f"axes {self.axes} are not all of {self.x.type}")
        shape: list[Dim] = []
        for axis, extent in enumerate(self.x.shape):
            if axis not in self.axes:
                shape.append(extent)
            elif self.keepdim:
                shape.append(1)
        return TensorType(self.result_dtype(), tuple(shape))

    def result_dtype(self) -> DType:
        """The element type of the result."""
        return self.x.dtype

    def cost(self) -> Cost:
        """An operation for each element that goes in."""
        return Cost(super().cost().bytes, self.x.tensor.numel)


class Sum(Reduce, name="sum"):
    """Sum; integers and bools are summed as i64."""

    def result_dtype(self) -> DType:
        return self.x.dtype if self.x.dtype.is_float else DType.I64

    @staticmethod
    def reference(x: Tensor, *, axes: tuple[int, ...], keepdim: bool) -> Tensor:
        if not axes:
            return x.clone() if x.is_floating_point() else x.long()
        return torch.sum(x, axes, keepdim)


class Mean(Reduce, name="mean"):
    """Arithmetic mean."""

    @staticmethod
    def reference(x: Tensor, *, axes: tuple[int, ...], keepdim: bool) -> Tensor:
        return torch.mean(x, axes, keepdim) if axes else x.clone()


class Amax(Reduce, name="amax"):
    """Largest element."""

    @staticmethod
    def reference(x: Tensor, *, axes: tuple[int, ...], keepdim: bool) -> Tensor:
        return torch.amax(x, axes, keepdim) if axes else x.clone()


class Amin(Reduce, name="amin"):
    """Smallest element."""

    @staticmethod
    def reference(x: Tensor, *, axes: tuple[int, ...], keepdim: bool) -> Tensor:
        return torch.amin(x, axes, keepdim) if axes else x.clone()


class Any(Reduce, name="any"):
    """Whether any element is non-zero: a bool, where torch gives u8 for u8."""

    def result_dtype(self) -> DType:
        return DType.BOOL

    @staticmethod
    def reference(x: Tensor, *, axes: tuple[int, ...], keepdim: bool) -> Tensor:
        return torch.any(x, axes, keepdim).bool() if axes else x.bool()


class All(Reduce, name="all"):
    """Whether all elements are non-zero: a bool, where torch gives u8 for u8."""

    def result_dtype(self) -> DType:
        return DType.BOOL

    @staticmethod
    def reference(x: Tensor, *, axes: tuple[int, ...], keepdim: bool) -> Tensor:
        return torch.all(x, axes, keepdim).bool() if axes else x.bool()


class Argmax(Op, name="argmax", traits={Trait.PURE}):
    """Index of the largest element along ``axis``, the first among equals."""

    x: Value = operand()
    axis: int = attribute()
    keepdim: bool = attribute(default=False)
    y: Value = result()

    def infer(self) -> TensorType:
        shape = list(self.x.shape)
        shape[self.axis : self.axis + 1] = [1] if self.keepdim else []
        return TensorType(DType.I64, tuple(shape))

    @staticmethod
    def reference(x: Tensor, *, axis: int, keepdim: bool) -> Tensor:
        return torch.argmax(x, axis, keepdim)


class Cumsum(Op, name="cumsum", traits={Trait.PURE}):
    """Running sum along ``axis``; integers and bools as i64."""

    x: Value = operand()
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        kind = self.x.tensor
        return kind if kind.dtype.is_float else kind.with_dtype(DType.I64)

    @staticmethod
    def reference(x: Tensor, *, axis: int) -> Tensor:
        return torch.cumsum(x, axis)


class Softmax(Op, name="softmax", traits={Trait.PURE}):
    """Softmax along ``axis``, computed in float32 and rounded once."""

    x: Value = operand()
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor

    @staticmethod
    def reference(x: Tensor, *, axis: int) -> Tensor:
        return torch.softmax(x, axis)


class TopK(Op, name="topk", traits={Trait.PURE}):
    """The ``k`` largest (or smallest) elements along ``axis`` and their indices, as torch.topk."""

    x: Value = operand()
    k: Dim = attribute()
    axis: int = attribute()
    largest: bool = attribute(default=True)
    ordered: bool = attribute(default=True)
    values: Value = result()
    indices: Value = result()

    def infer(self) -> tuple[TensorType, TensorType]:
        shape = list(self.x.shape)
        shape[self.axis] = self.k
        return self.x.tensor.with_shape(shape), TensorType(DType.I64, tuple(shape))

    @staticmethod
    def reference(
        x: Tensor, *, k: int, axis: int, largest: bool, ordered: bool
    ) -> tuple[Tensor, Tensor]:
        values, indices = torch.topk(x, k, axis, largest, ordered)
        return values, indices


class Sort(Op, name="sort", traits={Trait.PURE}):
    """Sorted elements along ``axis`` and their indices; equal elements keep their order."""

    x: Value = operand()
    axis: int = attribute()
    descending: bool = attribute(default=False)
    values: Value = result()
    indices: Value = result()

    def infer(self) -> tuple[TensorType, TensorType]:
        return self.x.tensor, self.x.tensor.with_dtype(DType.I64)

    @staticmethod
    def reference(x: Tensor, *, axis: int, descending: bool) -> tuple[Tensor, Tensor]:
        values, indices = torch.sort(x, dim=axis, descending=descending, stable=True)
        return values, indices
