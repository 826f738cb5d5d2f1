"""What low-rank adapters of rows compute, for every target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from fuseline.codegen.lower import NeedDense, Refusal, dtype_name, not_dense, unsupported
from fuseline.codegen.norms import promote
from fuseline.ir.core import Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.types import Dim, product

Step: TypeAlias = tuple[str, str]
"""What ``v`` becomes, as an expression over ``v``, ``factor`` and ``base`` in float32, and the type
that it is rounded to then."""


@dataclass(frozen=True)
class Adapters:
    """Adapters, as an op has them (see `fuseline.ir.ops.adapters` for what is computed).

    Attributes:
        count: how many there are.
        skips: whether the number ``count`` stands for none.
        depth, rank, width: of x, between both products, and of y.
        dtype: of x and the matrices; what both products round to.
        base, factor: types of those operands; None where they are absent.
        delta, out: the type of what is added, and of y.
        scale: the number that a product is multiplied by.
        low: whether scale and factor multiply the first product.
        rounds: whether the second product is rounded before the sum.
        a_transposed, b_transposed: those matrices lie ``[K, r]`` and ``[r, N]``.
    """

    count: int
    depth: int
    rank: int
    width: int
    dtype: str
    delta: str
    out: str
    base: str | None = None
    factor: str | None = None
    scale: float = 1.0
    low: bool = False
    rounds: bool = True
    skips: bool = False
    a_transposed: bool = False
    b_transposed: bool = False

    @property
    def title(self) -> str:
        """What is done, for the head of a source."""
        form = ", A [K, r]" * self.a_transposed + ", B [r, N]" * self.b_transposed
        size = f"{self.depth} to {self.rank} to {self.width} {self.dtype}"
        return f"{self.count} adapters, {size}{form}, y {self.out}"

    @property
    def kind(self) -> str:
        """The type of a product times the row's factor."""
        return promote(self.dtype, self.factor or self.dtype)

    @property
    def total(self) -> str:
        """The type of the sum with base."""
        return promote(self.base or self.delta, self.delta)

    @property
    def low_steps(self) -> tuple[Step, ...]:
        """What happens to the sums of the first product."""
        return _needed([("v", self.dtype), *(self._scaled if self.low else ()), ("v", self.dtype)])

    @property
    def high_steps(self) -> tuple[Step, ...]:
        """What happens to the sums of the second product until they are added; y rounds last."""
        first = [("v", self.dtype)] if self.rounds else []
        return _needed([*first, *(() if self.low else self._scaled), ("v", self.delta)])

    @property
    def total_steps(self) -> tuple[Step, ...]:
        """The sum with base."""
        return (("base + v", self.total),) if self.base else ()

    @property
    def _scaled(self) -> tuple[Step, ...]:
        rounded = self.dtype if self.rounds else "f32"
        number = f"v * {float(torch.tensor(self.scale))!r}"
        found = ((number, rounded),) if self.scale != 1.0 else ()
        return (*found, *((("v * factor", self.kind),) if self.factor else ()))


def _needed(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Without roundings of what has been rounded to the same type."""
    found: list[Step] = []
    for step in steps:
        if step[0] != "v" or not found or found[-1][1] != step[1]:
            found.append(step)
    return tuple(found)


def rows_of(op: MultiLora) -> Dim:
    """Rows of x."""
    return product(op.x.shape[:-1])


def adapters_of(op: MultiLora, layouts: LayoutMap) -> Adapters | NeedDense | Refusal:
    """What an op computes, or what it lacks for kernels over rows and stacked matrices."""
    if refusal := unsupported(op.x, op.a, op.b, op.base, op.factor):
        return refusal
    for value in (op.a, op.b):
        if value.dtype is not op.x.dtype:
            return Refusal(f"x {op.x.type} with adapters {value.type}")
        if not layouts.layout(value).is_dense(value.shape):
            return Refusal(f"{value.type} does not lie row by row in memory")
    for kind in (op.dtype, op.delta_dtype):
        if kind.value not in ("f32", "bf16", "f16"):
            return Refusal(f"y of {kind}; the kernel gives f32, bf16 and f16")
    sizes = (op.a.shape[0], op.x.shape[-1], op.rank, op.y.shape[-1])
    known = [d for d in sizes if isinstance(d, int) and d > 0]
    if len(known) < len(sizes):
        return Refusal(f"sizes {sizes}; the kernel needs known ones")
    count, depth, rank, width = known
    return _loose(op, layouts) or Adapters(
        count=count,
        depth=depth,
        rank=rank,
        width=width,
        dtype=op.x.dtype.value,
        delta=op.delta_dtype.value,
        out=op.dtype.value,
        base=dtype_name(op.base),
        factor=dtype_name(op.factor),
        scale=op.scale,
        low=op.inner,
        rounds=op.rounds,
        skips=op.skips,
        a_transposed=op.a_transposed,
        b_transposed=op.b_transposed,
    )


def _loose(op: MultiLora, layouts: LayoutMap) -> NeedDense | None:
    """The operands that must be copied first."""
    need = not_dense((op.ids, op.factor), layouts)
    rows = [v for v in (op.x, op.base) if v is not None]
    loose = [v for v in rows if layouts.layout(v).row_stride(v.shape) is None]
    values = (*(need.values if need else ()), *loose)
    return NeedDense(values) if values else None


def row_stride(value: Value, layouts: LayoutMap) -> Dim:
    """Elements from a row to the next; rows that have no such stride were copied."""
    stride = layouts.layout(value).row_stride(value.shape)
    assert stride is not None, f"the rows of {value.type} have no stride"
    return stride


__all__ = ["Adapters", "adapters_of", "row_stride", "rows_of"]
