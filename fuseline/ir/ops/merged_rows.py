"""Row norms and rotations of the same tokens that need nothing of one another, as one op."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fuseline.ir.core import (
    Cost,
    Op,
    OpError,
    Trait,
    Value,
    attribute,
    optional_operand,
    variadic_operand,
    variadic_result,
)
from fuseline.ir.ops.raised import (
    CastPoint,
    RopeStyle,
    RopeTable,
    rms_norm_reference,
    rope_reference,
)
from fuseline.ir.types import TensorType, dim, promote


class MergedRows(Op, name="merged_rows", traits={Trait.PURE}):
    """RMS norms of ``xs`` and rotations of ``turned``, each ``[B, S, Ni]``: one result for each.

    All are of one type and have the same B and S. Weights ``[Ni]`` are of one type, for all of
    ``xs`` or for none; cos and sin ``[B, S, W]`` or ``[1, S, W]`` are there if anything is turned.
    The attributes are those of `RmsNorm`, the same for all norms, and of `Rope`.
    """

    xs: tuple[Value, ...] = variadic_operand()
    weights: tuple[Value, ...] = variadic_operand()
    turned: tuple[Value, ...] = variadic_operand()
    cos: Value | None = optional_operand()
    sin: Value | None = optional_operand()
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    style: RopeStyle = attribute(default="half")
    table: RopeTable = attribute(default="full")
    start: int = attribute(default=0)
    width: int = attribute(default=0)
    sign: int = attribute(default=1)
    round: bool = attribute(default=True)
    ys: tuple[Value, ...] = variadic_result()

    @property
    def rows(self) -> tuple[Value, ...]:
        """What is read, in the order of the results."""
        return (*self.xs, *self.turned)

    def infer(self) -> tuple[TensorType, ...]:
        kinds = {(v.tensor.rank, v.shape[:2], v.dtype) for v in self.rows}
        if len(kinds) != 1 or next(iter(kinds))[0] != 3:
            raise OpError(self, f"rows {', '.join(str(v.type) for v in self.rows)}")
        if self.weights and len(self.weights) != len(self.xs):
            raise OpError(self, f"{len(self.weights)} weights for {len(self.xs)} norms")
        self._check_tables()
        normed = [x.tensor for x in self.xs]
        for i, weight in enumerate(self.weights):
            if weight.shape != normed[i].shape[-1:] or weight.dtype is not self.weights[0].dtype:
                raise OpError(self, f"weight {weight.type} does not fit {normed[i]}")
            if self.cast == "before_weight":
                normed[i] = normed[i].with_dtype(promote([weight.tensor, normed[i]]))
        return (*normed, *(x.tensor for x in self.turned))

    def _check_tables(self) -> None:
        tables = [v for v in (self.cos, self.sin) if v is not None]
        if len(tables) != 2 * bool(self.turned):
            raise OpError(self, f"{len(tables)} tables for {len(self.turned)} rotations")
        columns = self.width if self.table == "full" else self.width // 2
        for table in tables:
            if table.tensor.rank != 3 or table.shape[-1] != columns:
                raise OpError(self, f"table {table.type} is not [B, S, {columns}]")
        for x in self.turned:
            if isinstance(x.shape[-1], int) and self.start + self.width > x.shape[-1]:
                raise OpError(self, f"{self.start}..{self.start + self.width} of {x.type}")

    def cost(self) -> Cost:
        normed, turned = (sum(x.tensor.numel for x in xs) for xs in (self.xs, self.turned))
        return Cost(super().cost().bytes, dim(4 * normed + 3 * turned))

    @staticmethod
    def reference(
        xs: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
        turned: tuple[Tensor, ...],
        cos: Tensor | None,
        sin: Tensor | None,
        *,
        eps: float,
        offset: float,
        cast: str,
        **rope: Any,
    ) -> tuple[Tensor, ...]:
        each = weights or (None,) * len(xs)
        normed = [
            rms_norm_reference(x, weight, eps=eps, offset=offset, cast=cast)
            for x, weight in zip(xs, each, strict=True)
        ]
        if cos is None or sin is None:
            return tuple(normed)
        return (*normed, *(rope_reference(x, cos, sin, **rope) for x in turned))


__all__ = ["MergedRows"]
