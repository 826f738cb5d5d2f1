"""Bring casts, views, constants and small arithmetic to one agreed form."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Func
from fuseline.passes import canonical_arithmetic, canonical_casts, canonical_views
from fuseline.passes.rewrite import FuncPass
from fuseline.passes.sweep import collect, sweep

RULES = collect([canonical_casts.RULES, canonical_views.RULES, canonical_arithmetic.RULES])


@dataclass(frozen=True)
class Canonicalize(FuncPass):
    """One spelling for what models spell in many ways; every result keeps its bits.

    Casts: none to the same type, none of an exact cast, none implicit in arithmetic. Views:
    compositions joined, identities dropped, expands left out where broadcasting does the same.
    Arithmetic: scalars on the right, ``x * 1`` dropped, small powers as products and roots, signs
    as subtraction, logic on bools as logic.

    Before:
        func @f(%x: bf16[B, S, 12], %w: bf16[12]) {
          %two = full {value = 2, dtype = i64}
          %half = full {value = -0.5, dtype = f64}
          %one = full {value = 1.0, dtype = f64}
          %a = cast %x {dtype = f32}
          %b = pow %a, %two
          %c = pow %b, %half
          %d = mul %one, %c
          %e = mul %d, %w
          return %e
        }
    After:
        func @f(%x: bf16[B, S, 12], %w: bf16[12]) {
          %two = full {value = 2, dtype = i64}
          %half = full {value = -0.5, dtype = f64}
          %one = full {value = 1.0, dtype = f64}
          %a = cast %x {dtype = f32}
          %b = mul %a, %a
          %c = rsqrt %b
          %f = cast %w {dtype = f32}
          %e = mul %c, %f
          return %e
        }
    """

    def run(self, func: Func) -> None:
        sweep(func, RULES)
