"""Recognise layer norms that are spelled out."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.ir.ops.raised import LayerNorm
from fuseline.ir.ops.reduce import Mean
from fuseline.passes.norm_chain import centre, finish, scaled_row, squared
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite


@dataclass(frozen=True)
class RaiseLayerNorm(Rewrite[Mean], root=Mean, pattern="layer_norm"):
    """``(x - mean(x)) * rsqrt(mean((x - mean(x))**2) + eps)`` with weight, bias and rounding.

    Weight and bias may have one row for all, or one for each head.

    Before:
        func @f(%x: bf16[B, 2, 12], %w: bf16[2, 12]) {
          %eps = full {value = 1e-05, dtype = f32}
          %wide = cast %x {dtype = f32}
          %mean = mean %wide {axes = (2,), keepdim = true}
          %centred = sub %wide, %mean
          %square = mul %centred, %centred
          %variance = mean %square {axes = (2,), keepdim = true}
          %sum = add %variance, %eps
          %root = rsqrt %sum
          %scaled = mul %centred, %root
          %weight = cast %w {dtype = f32}
          %weighted = mul %weight, %scaled
          %y = cast %weighted {dtype = bf16}
          return %y
        }
    After:
        func @f(%x: bf16[B, 2, 12], %w: bf16[2, 12]) {
          %y = layer_norm %x, %w {eps = 1e-05, cast = "last"}
          return %y
        }
    """

    def rewrite(self, op: Mean, func: Func) -> Replace | NoMatch | None:
        wide = squared(op)
        source = None if wide is None else centre(wide)
        if wide is None or source is None:
            return None
        row = scaled_row(op, wide, func)
        if row is None or isinstance(row, NoMatch):
            return row
        end = finish(row, source, func, rows=2, biased=True)
        if end.offset:
            return NoMatch(f"the weight has an offset of {end.offset}")
        norm = LayerNorm(end.x, end.weight, end.bias, eps=row.eps, cast=end.cast)
        if norm.y.type != end.y.type:
            return NoMatch(f"the norm gives {norm.y.type}, its readers take {end.y.type}")
        return Replace(
            {end.y: norm.y},
            before=end.y.owner,
            held=("the row is centred and scaled by the root of its own variance",),
        )
