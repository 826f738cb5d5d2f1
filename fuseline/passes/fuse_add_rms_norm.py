"""Fold the residual add into the RMS norm that reads the sum."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.fused import AddRmsNorm
from fuseline.ir.ops.pointwise import Add
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.dependence import depends, maker
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite


@dataclass(frozen=True)
class FuseAddRmsNorm(Rewrite[RmsNorm], root=RmsNorm, pattern="add_rms_norm"):
    """Fold a residual add into the norm that reads it; other readers of the sum are kept.

    Before:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64]) {
          %s = add %x, %r
          %y = rms_norm %s, %w {eps = 1e-06}
          return %y, %s
        }
    After:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64]) {
          %s, %y = add_rms_norm %x, %r, %w {eps = 1e-06}
          return %y, %s
        }
    """

    def rewrite(self, op: RmsNorm, func: Func) -> Replace | NoMatch:
        match op.x.owner:
            case Add(lhs, rhs) as add:
                pass
            case AddRmsNorm():
                return NoMatch(f"the add that makes %{op.x.hint} is fused into another norm of it")
            case _:
                return NoMatch(f"x comes from {maker(op.x)}, not add")
        if lhs.type != rhs.type:
            return NoMatch(f"the add joins {lhs.type} and {rhs.type}, not two of one type")
        if op.weight is not None and depends(func, [op.weight], [add]):
            return NoMatch(f"weight %{op.weight.hint} depends on the sum")
        fused = AddRmsNorm(lhs, rhs, op.weight, eps=op.eps, offset=op.offset, cast=op.cast)
        return Replace(
            {op.x: fused.sum, op.y: fused.y}, held=("x is the sum of two values of one type",)
        )
