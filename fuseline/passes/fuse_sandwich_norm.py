"""Join the norm before a residual add with the add and the norm behind it."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.fused import AddRmsNorm, SandwichNorm
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.dependence import depends
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class FuseSandwichNorm(Rewrite[RmsNorm], root=RmsNorm, pattern="add_rms_norm"):
    """Norm a sub-block's output, add the residual, and norm the sum, in one op.

    Models that norm before and behind each sub-block (gemma3, glm4) have both norms around every
    residual add. Both stay sites of the report.

    Before:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64], %u: bf16[64]) {
          %n = rms_norm %x, %w {eps = 1e-06}
          %s, %y = add_rms_norm %r, %n, %u {eps = 1e-05}
          return %s, %y
        }
    After:
        func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64], %u: bf16[64]) {
          %s, %y = sandwich_norm %x, %r, %w, %u {eps = 1e-06, next_eps = 1e-05}
          return %s, %y
        }
    """

    def rewrite(self, op: RmsNorm, func: Func) -> Replace | None:
        if func.use_count(op.y) != 1 or func.is_returned(op.y):
            return None
        (reader,) = func.users(op.y)
        if not isinstance(reader, AddRmsNorm):
            return None
        residual = reader.residual if reader.x is op.y else reader.x
        values = (op.x, residual, op.weight, reader.weight)
        if any(v is not None and v.dtype is not op.x.dtype for v in (*values, reader.y)):
            return None
        if depends(func, [v for v in values[1:] if v is not None], [op]):
            return None
        fused = SandwichNorm(
            *values,
            eps=op.eps,
            offset=op.offset,
            cast=op.cast,
            next_eps=reader.eps,
            next_offset=reader.offset,
            next_cast=reader.cast,
        )
        return Replace(
            {reader.sum: fused.sum, reader.y: fused.y},
            before=reader,
            held=("only a residual add that another norm reads reads the norm",),
            keep_sites=True,
        )
