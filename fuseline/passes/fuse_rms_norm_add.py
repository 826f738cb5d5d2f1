"""Fold the residual add behind an RMS norm into it, where no other norm reads the sum."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.fused import RmsNormAdd
from fuseline.ir.ops.pointwise import Add
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.dependence import depends
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class FuseRmsNormAdd(Rewrite[RmsNorm], root=RmsNorm, pattern="add_rms_norm"):
    """Add the residual to the norm of a sub-block's output as it is made.

    Models that norm behind the sub-block and not before it (olmo2) have no norm that reads the
    sum; where there is one, ``fuse-add-rms-norm`` has taken the add before.

    Before:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64]) {
          %n = rms_norm %x, %w {eps = 1e-06}
          %s = add %r, %n
          return %s
        }
    After:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64]) {
          %s = rms_norm_add %x, %r, %w {eps = 1e-06}
          return %s
        }
    """

    def rewrite(self, op: RmsNorm, func: Func) -> Replace | None:
        if func.use_count(op.y) != 1 or func.is_returned(op.y):
            return None
        (reader,) = func.users(op.y)
        if not isinstance(reader, Add) or reader.lhs.type != reader.rhs.type:
            return None
        residual = reader.rhs if reader.lhs is op.y else reader.lhs
        if depends(func, [residual], [op]):
            return None
        fused = RmsNormAdd(op.x, residual, op.weight, eps=op.eps, offset=op.offset, cast=op.cast)
        return Replace(
            {reader.y: fused.y}, before=reader, held=("only the residual add reads the norm",)
        )
