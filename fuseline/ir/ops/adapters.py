"""Low-rank adapters (LoRA, arXiv:2106.09685) of which each row has its own."""

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
from fuseline.ir.types import Dim, DType, TensorType, dim, product


def _scaled(value: Tensor, scale: float, factor: Tensor | None) -> Tensor:
    """Rows times the number, then times the factor of each; rounded each time."""
    value = value * scale if scale != 1.0 else value
    return value if factor is None else value * factor[:, None]


def multi_lora_reference(
    x: Tensor,
    ids: Tensor,
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    factor: Tensor | None,
    *,
    scale: float,
    inner: bool,
    a_transposed: bool,
    b_transposed: bool,
    skips: bool,
    rounds: bool,
    active: int | None,
    delta_dtype: DType,
    dtype: DType,
) -> Tensor:
    """Adapter by adapter: see `MultiLora`."""
    del active  # what numbers there are is not for this to say
    down, up = a.mT if a_transposed else a, b.mT if b_transposed else b
    rows, number = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
    count = a.shape[0]
    if bool(((number < 0) | (number >= count + skips)).any()):
        raise IndexError("the number of an adapter is outside of those in use")
    factors = None if factor is None else factor.reshape(-1)
    found = torch.zeros(rows.shape[0], up.shape[1], dtype=delta_dtype.torch, device=x.device)
    for e in range(count):
        (own,) = torch.where(number == e)
        if not own.numel():
            continue
        by = None if factors is None else factors[own]
        low = F.linear(rows[own], down[e])
        low = _scaled(low, scale, by).to(x.dtype) if inner else low
        wide = low.dtype if rounds else torch.promote_types(low.dtype, torch.float32)
        given = F.linear(low.to(wide), up[e].to(wide))
        found[own] = (given if inner else _scaled(given, scale, by)).to(delta_dtype.torch)
    found = found.reshape(*x.shape[:-1], up.shape[1])
    return (found if base is None else base + found).to(dtype.torch)


class MultiLora(Op, name="multi_lora", traits={Trait.PURE}):
    """Adds to each row of base what its adapter makes of its row of x: y ``[..., N]``.

    For a row with adapter i, ``delta = (x @ A[i].T) @ B[i].T``: x ``[..., K]``, a ``[n, r, K]``
    (``a_transposed``: ``[n, K, r]``), b ``[n, N, r]`` (``b_transposed``: ``[n, r, N]``). ids
    ``[...]``, i64, has the adapter of each row; with ``skips`` the number n stands for none, and
    that row's delta is 0. Any other number is an error.

    Both products are rounded to x's type. The second one, or with ``inner`` the first, is
    multiplied by ``scale``, then by the row's factor ``[...]``, and rounded each time, to the
    promoted type; ``inner``: then to x's. The outcome is rounded to ``delta_dtype``, base
    ``[..., N]`` is added in the promoted type, and the sum is rounded to ``dtype``. Without
    ``rounds`` the second product stays float32 until base has been added.

    ``active``: how many adapters, the first ones, may have rows; ids has no number between this and
    n. It changes no result: a GPU has blocks for so many.
    """

    x: Value = operand()
    ids: Value = operand()
    a: Value = operand()
    b: Value = operand()
    base: Value | None = optional_operand()
    factor: Value | None = optional_operand()
    scale: float = attribute(default=1.0)
    inner: bool = attribute(default=False)
    a_transposed: bool = attribute(default=False)
    b_transposed: bool = attribute(default=False)
    skips: bool = attribute(default=False)
    rounds: bool = attribute(default=True)
    active: Dim | None = attribute(default=None)
    delta_dtype: DType = attribute()
    dtype: DType = attribute()
    y: Value = result()

    def infer(self) -> TensorType:
        x, a, b = self.x.tensor, self.a.tensor, self.b.tensor
        if x.rank < 1 or a.rank != 3 or b.rank != 3:
            raise OpError(self, f"x {x}, a {a}, b {b}")
        if self.ids.dtype is not DType.I64:
            raise OpError(self, f"ids are {self.ids.type}, expected i64")
        for name, value in (("ids", self.ids), ("factor", self.factor)):
            if value is not None and value.shape != x.shape[:-1]:
                raise OpError(self, f"{name} {value.type} for the rows of x {x}")
        if a.shape[0] != b.shape[0] or self.rank != b.shape[1 if self.b_transposed else 2]:
            raise OpError(self, f"a {a} with b {b}")
        if a.shape[1 if self.a_transposed else 2] != x.shape[-1]:
            raise OpError(self, f"a {a} does not fit x {x}")
        y = TensorType(self.dtype, (*x.shape[:-1], b.shape[2 if self.b_transposed else 1]))
        if self.base is not None and self.base.shape != y.shape:
            raise OpError(self, f"base {self.base.type} for y {y}")
        return y

    @property
    def rank(self) -> Dim:
        """The width between both products."""
        return self.a.shape[2 if self.a_transposed else 1]

    def cost(self) -> Cost:
        rows = product(self.x.shape[:-1])
        width = dim(self.x.shape[-1] + self.y.shape[-1])
        return Cost(super().cost().bytes, dim(2 * rows * self.rank * width))

    reference = staticmethod(multi_lora_reference)


__all__ = ["MultiLora", "multi_lora_reference"]
