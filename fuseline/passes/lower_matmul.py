"""Spell the products that are no attention as what there are kernels for."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.ops.pointwise import Mul
from fuseline.ir.ops.view import Permute
from fuseline.passes.rewrite import Replace, Rewrite


@dataclass(frozen=True)
class LowerMatmul(Rewrite[Matmul], root=Matmul):
    """Replace an outer product by a multiplication, and one with a matrix by a linear.

    Rotary embeddings spell frequencies times positions as a product that sums over one element.
    Its result keeps its bits, but for the sign of a zero: a product adds to 0.

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

    Weights may lie ``[K, N]``; kernels of linears read them so.

    Before:
        func @f(%x: f32[B, S, 6], %w: f32[6, 5]) {
          %y = matmul %x, %w
          return %y
        }
    After:
        func @f(%x: f32[B, S, 6], %w: f32[6, 5]) {
          %t = permute %w {dims = (1, 0)}
          %y = linear %x, %t
          return %y
        }
    """

    def rewrite(self, op: Matmul, func: Func) -> Replace | None:
        width, rows = op.lhs.shape[-1], op.rhs.shape[-2]
        if width != rows:
            return None
        if width == 1:
            return Replace({op.y: Mul(op.lhs, op.rhs).y})
        if op.rhs.tensor.rank != 2:
            return None
        return Replace({op.y: Linear(op.lhs, Permute(op.rhs, dims=(1, 0)).y, None).y})
