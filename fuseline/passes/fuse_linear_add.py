"""Fold a residual add into the epilogue of the product before it."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.fused import LinearAdd
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Add
from fuseline.ir.ops.raised import RmsNorm
from fuseline.passes.dependence import depends
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class FuseLinearAdd(Rewrite[Add], root=Add):
    """Add a residual in the epilogue of the product that makes the other summand.

    The product must have no other reader. A sum that an RMS norm reads is left to
    ``fuse-add-rms-norm``, which saves the same pass over memory and the norm's as well, unless
    ``before_norms`` is set: then the product takes the sum, and the norm stays alone.

    Before:
        func @f(%x: bf16[B, 6], %w: bf16[8, 6] = param "w", %r: bf16[B, 8]) {
          %y = linear %x, %w
          %s = add %r, %y
          return %s
        }
    After:
        func @f(%x: bf16[B, 6], %w: bf16[8, 6] = param "w", %r: bf16[B, 8]) {
          %s = linear_add %x, %w, %r
          return %s
        }
    """

    before_norms: bool = False

    def rewrite(self, op: Add, func: Func) -> Replace | None:
        if op.lhs.type != op.rhs.type:
            return None
        if not self.before_norms and any(isinstance(u, RmsNorm) for u in func.users(op.y)):
            return None
        return _fold(func, op, op.rhs, op.lhs) or _fold(func, op, op.lhs, op.rhs)


def _fold(func: Func, op: Add, made: Value, residual: Value) -> Replace | None:
    linear = made.owner
    if not isinstance(linear, Linear) or func.use_count(made) != 1:
        return None
    if depends(func, [residual], [linear]):
        return None
    fused = LinearAdd(linear.x, linear.weight, residual, linear.bias)
    return Replace({op.y: fused.y}, held=("the product has no other reader",))
