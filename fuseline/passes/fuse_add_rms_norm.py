"""Fold the residual add into the RMS norm that reads the sum."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.fused import AddRmsNorm, LinearAdd
from fuseline.ir.ops.pointwise import Add, Cast
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.dependence import depends
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import called

_HELD = ("x is the sum of two values of one type",)


@dataclass(frozen=True)
class FuseAddRmsNorm(Rewrite[RmsNorm], root=RmsNorm, pattern="add_rms_norm"):
    """Fold a residual add into the norm that reads it; other readers of the sum are kept.

    A norm of anything but a sum is no site of this pattern.

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

    def rewrite(self, op: RmsNorm, func: Func) -> Replace | NoMatch | None:
        match op.x.owner:
            case Add(lhs, rhs) as add:
                pass
            case _:
                reason = _taken(op.x)
                return NoMatch(reason) if reason else None
        if lhs.type != rhs.type:
            reason = f"the add joins {lhs.type} and {rhs.type}, not two of one type"
            return NoMatch(reason, held=("x is a sum",))
        if op.weight is not None and depends(func, [op.weight], [add]):
            reason = f"the weight, {called(op.weight)}, depends on the sum"
            return NoMatch(reason, held=_HELD)
        fused = AddRmsNorm(lhs, rhs, op.weight, eps=op.eps, offset=op.offset, cast=op.cast)
        return Replace({op.x: fused.sum, op.y: fused.y}, held=_HELD)


def _taken(x: Value) -> str:
    """Why the addition before a norm is not there to be folded; empty where there is none."""
    match x.owner:
        case AddRmsNorm(sum=total) if total is x:
            return "another norm of the sum has taken the add"
        case LinearAdd(x=source):
            return f"the product of {called(source)} has taken the add"
        case Cast(inner) if isinstance(inner.owner, Add) or _taken(inner):
            return f"the sum is cast from {inner.dtype} to {x.dtype} before the norm"
        case _:
            return ""
