"""Ops that rearrange elements: views until the planner decides otherwise."""

from __future__ import annotations

import torch
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
from fuseline.ir.types import Dim, TensorType, dim, format_dim, product, promote


class View(Op):
    """Base of the ops whose result may share the operand's memory."""

    traits = frozenset({Trait.PURE, Trait.VIEW})

    x: Value = operand()

    def cost(self) -> Cost:
        return Cost(0, 0)


class Reshape(View, name="reshape"):
    """The same elements in row-major order under another shape."""

    shape: tuple[Dim, ...] = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        have, want = self.x.tensor.numel, product(self.shape)
        if isinstance(have, int) and isinstance(want, int) and have != want:
            raise OpError(self, f"{self.x.type} has {have} elements, shape {self.shape} has {want}")
        return self.x.tensor.with_shape(self.shape)

    @staticmethod
    def reference(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
        return x.reshape(shape)


class Permute(View, name="permute"):
    """Dim ``i`` of the result is dim ``dims[i]`` of the operand."""

    dims: tuple[int, ...] = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        if sorted(self.dims) != list(range(self.x.tensor.rank)):
            raise OpError(self, f"dims {self.dims} do not permute {self.x.type}")
        return self.x.tensor.with_shape([self.x.shape[d] for d in self.dims])

    @staticmethod
    def reference(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
        return x.permute(dims)


class Expand(View, name="expand"):
    """Broadcast to ``shape``: extents of 1 and missing leading dims are repeated."""

    shape: tuple[Dim, ...] = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        if len(self.shape) < self.x.tensor.rank:
            raise OpError(self, f"{self.x.type} does not expand to {self.shape}")
        for have, want in zip(self.x.shape[::-1], self.shape[::-1], strict=False):
            if isinstance(have, int) and isinstance(want, int) and have not in (1, want):
                raise OpError(self, f"{self.x.type} does not expand to {self.shape}")
        return self.x.tensor.with_shape(self.shape)

    @staticmethod
    def reference(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
        return x.expand(shape)


class Slice(View, name="slice"):
    """Elements ``start, start + step, ...`` below ``stop`` along ``axis``; ends are in bounds."""

    axis: int = attribute()
    start: Dim = attribute(default=0)
    stop: Dim = attribute()
    step: int = attribute(default=1)
    y: Value = result()

    def infer(self) -> TensorType:
        if not 0 <= self.axis < self.x.tensor.rank:
            raise OpError(self, f"axis {self.axis} is not one of {self.x.type}")
        extent = dim(self.stop - self.start)
        if self.step != 1:
            if not isinstance(extent, int):
                raise OpError(self, f"a step of {self.step} needs a known extent")
            extent = -(-extent // self.step)
        size = self.x.shape[self.axis]
        if isinstance(extent, int) and isinstance(size, int) and not 0 <= extent <= size:
            raise OpError(
                self, f"{format_dim(self.start)}..{format_dim(self.stop)} of {self.x.type}"
            )
        shape = list(self.x.shape)
        shape[self.axis] = extent
        return self.x.tensor.with_shape(shape)

    @staticmethod
    def reference(x: Tensor, *, axis: int, start: int, stop: int, step: int) -> Tensor:
        return x[(slice(None),) * axis + (slice(start, stop, step),)]


class Concat(Op, name="concat", traits={Trait.PURE, Trait.MOVES}):
    """The operands one behind the other along ``axis``, promoted."""

    xs: tuple[Value, ...] = variadic_operand()
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        if not self.xs:
            raise OpError(self, "needs at least one operand")
        shape = list(self.xs[0].shape)
        if not 0 <= self.axis < len(shape):
            raise OpError(self, f"axis {self.axis} is not one of {self.xs[0].type}")
        for other in self.xs[1:]:
            if len(other.shape) != len(shape):
                raise OpError(self, f"{other.type} beside {self.xs[0].type}")
        shape[self.axis] = dim(sum(x.shape[self.axis] for x in self.xs))
        return TensorType(promote([x.tensor for x in self.xs]), tuple(shape))

    @staticmethod
    def reference(xs: tuple[Tensor, ...], *, axis: int) -> Tensor:
        return torch.cat(list(xs), axis)


class Pad(Op, name="pad", traits={Trait.PURE, Trait.MOVES}):
    """``before`` and ``after`` elements of ``value`` added along ``axis``."""

    x: Value = operand()
    axis: int = attribute()
    before: Dim = attribute(default=0)
    after: Dim = attribute(default=0)
    value: float = attribute(default=0.0)
    y: Value = result()

    def infer(self) -> TensorType:
        shape = list(self.x.shape)
        shape[self.axis] = dim(shape[self.axis] + self.before + self.after)
        return self.x.tensor.with_shape(shape)

    @staticmethod
    def reference(x: Tensor, *, axis: int, before: int, after: int, value: float) -> Tensor:
        pads = [0, 0] * (x.dim() - 1 - axis) + [before, after]
        return torch.nn.functional.pad(x, pads, value=value)


def unreshaped(value: Value) -> Value:
    """What a value was before it was reshaped: the same elements in the same order."""
    while isinstance(value.owner, Reshape):
        value = value.owner.x
    return value
