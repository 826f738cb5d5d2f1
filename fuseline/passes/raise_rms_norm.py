"""Recognise RMS norms in all their spellings."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.raised import RmsNorm
from fuseline.ir.ops.reduce import Mean
from fuseline.passes.norm_chain import centre, finish, scaled_row, squared
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite


@dataclass(frozen=True)
class RaiseRmsNorm(Rewrite[Mean], root=Mean, pattern="rms_norm"):
    """``x * rsqrt(mean(x**2) + eps)`` over the last dim, with its rounding and its weight.

    The rounding to x's type may come before the weight or last; the weight may be absent, or be
    written ``1 + w``. The mean square must be computed in float32 or float64.

    Before:
        func @f(%x: bf16[B, 12], %w: bf16[12]) {
          %eps = full {value = 1e-06, dtype = f32}
          %wide = cast %x {dtype = f32}
          %square = mul %wide, %wide
          %mean = mean %square {axes = (1,), keepdim = true}
          %sum = add %mean, %eps
          %root = rsqrt %sum
          %scaled = mul %wide, %root
          %normal = cast %scaled {dtype = bf16}
          %y = mul %w, %normal
          return %y
        }
    After:
        func @f(%x: bf16[B, 12], %w: bf16[12]) {
          %y = rms_norm %x, %w {eps = 1e-06}
          return %y
        }

    Before:
        func @f(%x: bf16[B, 12], %w: bf16[12]) {
          %one = full {value = 1.0, dtype = f32}
          %wide = cast %x {dtype = f32}
          %square = mul %wide, %wide
          %mean = mean %square {axes = (1,), keepdim = true}
          %root = rsqrt %mean
          %scaled = mul %wide, %root
          %weight = cast %w {dtype = f32}
          %from_one = add %weight, %one
          %weighted = mul %scaled, %from_one
          %y = cast %weighted {dtype = bf16}
          return %y
        }
    After:
        func @f(%x: bf16[B, 12], %w: bf16[12]) {
          %y = rms_norm %x, %w {eps = 0.0, offset = 1.0, cast = "last"}
          return %y
        }
    """

    def rewrite(self, op: Mean, func: Func) -> Replace | NoMatch | None:
        wide = squared(op)
        if wide is None or centre(wide) is not None:
            return None
        row = scaled_row(op, wide, func)
        if row is None or isinstance(row, NoMatch):
            return row
        end = finish(row, row.wide, func, rows=1, biased=False)
        norm = RmsNorm(end.x, end.weight, eps=row.eps, offset=end.offset, cast=end.cast)
        if norm.y.type != end.y.type:
            return NoMatch(f"the norm gives {norm.y.type}, its readers take {end.y.type}")
        return Replace(
            {end.y: norm.y},
            before=end.y.owner,
            held=("the row is scaled by the root of its own mean square",),
        )
