"""Widen the operands of a float32 product inside of it."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.fused import WideLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.types import DType
from fuseline.passes.match import narrow
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class FuseWideLinear(Rewrite[Linear], root=Linear):
    """Read narrow operands of a float32 product as they are: no step casts the weights again.

    Routers compute their logits so. The casts may have other readers, and stay for these.

    Before:
        func @f(%x: bf16[B, 8], %w: bf16[6, 8] = param "w") {
          %xf = cast %x {dtype = f32}
          %wf = cast %w {dtype = f32}
          %y = linear %xf, %wf
          return %y
        }
    After:
        func @f(%x: bf16[B, 8], %w: bf16[6, 8] = param "w") {
          %y = wide_linear %x, %w
          return %y
        }
    """

    def rewrite(self, op: Linear, func: Func) -> Replace | None:
        if {op.x.dtype, op.weight.dtype} != {DType.F32}:
            return None
        x, weight = narrow(op.x), narrow(op.weight)
        bias = None if op.bias is None else _as(op.bias, weight)
        if (x is op.x and weight is op.weight) or (op.bias is not None and bias is None):
            return None
        return Replace({op.y: WideLinear(x, weight, bias).y}, held=("the casts are exact",))


def _as(bias: Value, weight: Value) -> Value | None:
    """A bias in the type of the weight; None where it is of another."""
    found = narrow(bias) if bias.dtype is not weight.dtype else bias
    return found if found.dtype is weight.dtype else None
