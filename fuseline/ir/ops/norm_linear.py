"""The RMS norm of a row, and the products that read it."""

from __future__ import annotations

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
    optional_operand,
    variadic_operand,
    variadic_result,
)
from fuseline.ir.ops.raised import (
    Activation,
    CastPoint,
    activation_reference,
    rms_norm_reference,
)
from fuseline.ir.types import TensorType, dim, product


class NormLinear(Op, name="norm_linear", traits={Trait.PURE}):
    """``y = rms_norm(x)``, and products of y: `AddRmsNorm` or `RmsNorm`, then `MergedLinear`.

    x is ``[..., K]``; with a residual of its type the sum of both is what is normalised. ``weight``
    is the norm's, and ``eps``, ``offset`` and ``cast`` are as in `RmsNorm`. y has the type of x.
    Without an activation the results are the products by ``weights`` ``[Ni, K]``, one each, of
    which there may be one; with one, ``weights`` are gate and up, and the result is that of
    `GatedLinear`.

    Results: the sum, where there is a residual; y; then the products.
    """

    x: Value = operand()
    residual: Value | None = optional_operand()
    weight: Value | None = optional_operand()
    weights: tuple[Value, ...] = variadic_operand()
    biases: tuple[Value, ...] = variadic_operand()
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    activation: Activation | None = attribute(default=None)
    made: tuple[Value, ...] = variadic_result()

    @property
    def sum(self) -> Value | None:
        """``x + residual``, where there is one."""
        return None if self.residual is None else self.made[0]

    @property
    def y(self) -> Value:
        """The norm."""
        return self.made[0 if self.residual is None else 1]

    @property
    def products(self) -> tuple[Value, ...]:
        """What y is multiplied to."""
        return self.made[1 if self.residual is None else 2 :]

    def infer(self) -> tuple[TensorType, ...]:
        kind = self.x.tensor
        if self.residual is not None and self.residual.tensor != kind:
            raise OpError(self, f"residual {self.residual.type} does not fit x {kind}")
        if self.weight is not None and self.weight.tensor != kind.with_shape(kind.shape[-1:]):
            raise OpError(self, f"weight {self.weight.type} does not fit x {kind}")
        if self.biases and len(self.biases) != len(self.weights):
            raise OpError(self, f"{len(self.biases)} biases for {len(self.weights)} weights")
        for weight in self.weights:
            if weight.dtype is not kind.dtype or weight.shape[1:] != kind.shape[-1:]:
                raise OpError(self, f"weight {weight.type} does not fit x {kind}")
        widths = [w.shape[0] for w in self.weights]
        if self.activation is not None:
            if len(widths) != 2 or widths[0] != widths[1]:
                raise OpError(self, f"gate and up of widths {widths}")
            widths.pop()
        products = tuple(kind.with_shape((*kind.shape[:-1], width)) for width in widths)
        return (*[kind] * (self.residual is not None), kind, *products)

    def cost(self) -> Cost:
        rows = product(self.x.shape[:-1])
        products = sum(2 * rows * w.tensor.numel for w in self.weights)
        return Cost(super().cost().bytes, dim(products + 5 * self.x.tensor.numel))

    @staticmethod
    def reference(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        weights: tuple[Tensor, ...],
        biases: tuple[Tensor, ...],
        *,
        eps: float,
        offset: float,
        cast: str,
        activation: str | None,
    ) -> tuple[Tensor, ...]:
        total = x if residual is None else x + residual
        y = rms_norm_reference(total, weight, eps=eps, offset=offset, cast=cast)
        each = biases or (None,) * len(weights)
        made = [F.linear(y, w, b) for w, b in zip(weights, each, strict=True)]
        if activation is not None:
            made = [activation_reference(made[0], activation) * made[1]]
        return (*[total] * (residual is not None), y, *made)


__all__ = ["NormLinear"]
