"""Matrix products and the attention primitive that tracing leaves whole."""

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
    optional_operand,
    result,
)
from fuseline.ir.types import Dim, TensorType, broadcast, dim, product, same


def _product_cost(op: Op, inner: Dim) -> Cost:
    moved = [v.tensor.nbytes for v in (*op.operands, *op.results)]
    return Cost(dim(sum(moved)), dim(2 * product(op.results[0].shape) * inner))


class Linear(Op, name="linear", traits={Trait.PURE}):
    """``x @ weight.T + bias``: x ``[..., K]``, weight ``[N, K]``, bias ``[N]``, y ``[..., N]``."""

    x: Value = operand()
    weight: Value = operand()
    bias: Value | None = optional_operand()
    y: Value = result()

    def infer(self) -> TensorType:
        weight = self.weight.tensor
        if weight.rank != 2 or self.x.shape[-1:] != weight.shape[1:]:
            raise OpError(self, f"weight {weight} does not fit x {self.x.type}")
        if self.bias is not None and self.bias.shape != weight.shape[:1]:
            raise OpError(self, f"bias {self.bias.type} does not fit weight {weight}")
        if len({v.dtype for v in self.operands}) > 1:
            types = ", ".join(str(v.type) for v in self.operands)
            raise OpError(self, f"operands of several element types: {types}")
        return self.x.tensor.with_shape((*self.x.shape[:-1], weight.shape[0]))

    def cost(self) -> Cost:
        return _product_cost(self, self.x.shape[-1])

    reference = staticmethod(F.linear)


class Matmul(Op, name="matmul", traits={Trait.PURE}):
    """Batched product: ``[..., M, K] @ [..., K, N]``, leading dims broadcast."""

    lhs: Value = operand()
    rhs: Value = operand()
    y: Value = result()

    def infer(self) -> TensorType:
        lhs, rhs = self.lhs.tensor, self.rhs.tensor
        if lhs.rank < 2 or rhs.rank < 2 or not _same(lhs.shape[-1], rhs.shape[-2]):
            raise OpError(self, f"{lhs} @ {rhs}")
        if lhs.dtype is not rhs.dtype:
            raise OpError(self, f"operands of several element types: {lhs}, {rhs}")
        batch = broadcast([lhs.shape[:-2], rhs.shape[:-2]])
        return lhs.with_shape((*batch, lhs.shape[-2], rhs.shape[-1]))

    def cost(self) -> Cost:
        return _product_cost(self, self.lhs.shape[-1])

    reference = staticmethod(torch.matmul)


def _same(lhs: Dim, rhs: Dim) -> bool:
    return same(lhs, rhs) or not (isinstance(lhs, int) and isinstance(rhs, int))


class GroupedMatmul(Op, name="grouped_matmul", traits={Trait.PURE}):
    """One product a group: rows ``ends[g - 1] .. ends[g]`` of x ``[S, K]`` by weight ``[G, K, N]``.

    ends: i32 ``[G]``, ascending. Rows behind the last group are 0 (torch leaves them undefined).
    """

    x: Value = operand()
    weight: Value = operand()
    ends: Value = operand()
    y: Value = result()

    def infer(self) -> TensorType:
        x, weight = self.x.tensor, self.weight.tensor
        if x.rank != 2 or weight.rank != 3 or not _same(x.shape[-1], weight.shape[1]):
            raise OpError(self, f"x {x}, weight {weight}")
        if self.ends.shape != weight.shape[:1]:
            raise OpError(self, f"ends {self.ends.type} for weight {weight}")
        return x.with_shape((x.shape[0], weight.shape[2]))

    def cost(self) -> Cost:
        return _product_cost(self, self.x.shape[-1])

    @staticmethod
    def reference(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], weight.shape[2])
        start = 0
        for group in range(ends.shape[0]):
            end = int(ends[group])
            if end > start:
                torch.mm(x[start:end], weight[group], out=y[start:end])
            start = end
        return y


class Sdpa(Op, name="sdpa", traits={Trait.PURE}):
    """torch's scaled dot-product attention: q ``[B, H, Sq, D]``, k and v ``[B, Hk, Sk, D]``."""

    q: Value = operand()
    k: Value = operand()
    v: Value = operand()
    mask: Value | None = optional_operand()
    is_causal: bool = attribute(default=False)
    scale: float | None = attribute(default=None)
    enable_gqa: bool = attribute(default=False)
    y: Value = result()

    def infer(self) -> TensorType:
        if not _same(self.q.shape[-1], self.k.shape[-1]):
            raise OpError(self, f"q {self.q.type} and k {self.k.type} differ in head dim")
        return self.q.tensor.with_shape((*self.q.shape[:-1], self.v.shape[-1]))

    def cost(self) -> Cost:
        moved = [v.tensor.nbytes for v in (*self.operands, *self.results)]
        pairs = product((*self.q.shape[:-1], self.k.shape[-2]))
        width = self.q.shape[-1] + self.v.shape[-1]
        return Cost(dim(sum(moved)), dim(2 * pairs * width))

    @staticmethod
    def reference(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
