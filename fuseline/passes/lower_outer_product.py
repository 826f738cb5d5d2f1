"""Spell outer products as multiplications, which fuse with what is around them."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.matmul import Matmul
from fuseline.ir.ops.pointwise import Mul
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class LowerOuterProduct(Rewrite[Matmul], root=Matmul):
    """Replace a product that sums over a single element by a multiplication.

    Rotary embeddings spell frequencies times positions so. A result keeps its bits, but for the
    sign of a zero: a product adds to 0.

    Before:
        func @f(%frequencies: f32[1, 8, 1], %positions: f32[B, 1, S]) {
          %angles = matmul %frequencies, %positions
          return %angles
        }
    After:
        func @f(%frequencies: f32[1, 8, 1], %positions: f32[B, 1, S]) {
          %angles = mul %frequencies, %positions
          return %angles
        }
    """

    def rewrite(self, op: Matmul, func: Func) -> Replace | None:
        if op.lhs.shape[-1] != 1 or op.rhs.shape[-2] != 1:
            return None
        return Replace({op.y: Mul(op.lhs, op.rhs).y})
