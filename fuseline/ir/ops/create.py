"""Ops that make tensors out of nothing but attributes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fuseline.ir.core import Op, OpError, Trait, Value, attribute, result
from fuseline.ir.types import Dim, DType, TensorType


class Full(Op, name="full", traits={Trait.PURE, Trait.MOVES}):
    """A tensor whose every element is ``value``; 0-d for a plain constant. A dim is a value too."""

    value: bool | float | Dim = attribute()
    shape: tuple[Dim, ...] = attribute(default=())
    dtype: DType = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        whole = not self.dtype.is_float and self.dtype is not DType.BOOL
        if whole and isinstance(self.value, float) and not math.isfinite(self.value):
            raise OpError(self, f"{self.value} is no number of type {self.dtype}")
        if isinstance(self.value, int) and not -(2**63) <= self.value < 2**63:
            raise OpError(self, f"the value {self.value} needs more than 64 bits")
        return TensorType(self.dtype, self.shape)

    @staticmethod
    def reference(*, value: bool | float, shape: tuple[int, ...], dtype: DType) -> Tensor:
        return torch.full(shape, value, dtype=dtype.torch)


class Iota(Op, name="iota", traits={Trait.PURE, Trait.MOVES}):
    """``start, start + step, ...``: ``length`` elements, 1-d."""

    length: Dim = attribute()
    start: float | Dim = attribute(default=0)
    step: float | Dim = attribute(default=1)
    dtype: DType = attribute(default=DType.I64)
    y: Value = result()

    def infer(self) -> TensorType:
        return TensorType(self.dtype, (self.length,))

    @staticmethod
    def reference(*, length: int, start: float, step: float, dtype: DType) -> Tensor:
        if not dtype.is_float:
            return torch.arange(length, dtype=dtype.torch) * int(step) + int(start)
        return (torch.arange(length, dtype=torch.float64) * step + start).to(dtype.torch)
