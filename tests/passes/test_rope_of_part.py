"""A partly rotated row that is itself a part of a larger one: q of a fused q, k, v projection."""

from __future__ import annotations

from fuseline.passes.dce import Dce
from fuseline.passes.raise_rope import RaiseRope
from fuseline.testing import assert_rewrites


def test_row_that_is_a_part_of_a_larger_one() -> None:
    """gpt_neox: slices of slices have become slices of the projection."""
    head = "func @f(%p: f32[B, 4, S, 48], %cos: f32[1, 1, S, 8], %sin: f32[1, 1, S, 8]) {"
    assert_rewrites(
        (RaiseRope(), Dce()),
        before=f"""{head}
          %x = slice %p {{axis = 3, start = 16, stop = 24}}
          %rest = slice %p {{axis = 3, start = 24, stop = 32}}
          %u = slice %p {{axis = 3, start = 16, stop = 20}}
          %v = slice %p {{axis = 3, start = 20, stop = 24}}
          %n = neg %v
          %t = concat [%n, %u] {{axis = 3}}
          %a = mul %x, %cos
          %b = mul %t, %sin
          %e = add %a, %b
          %y = concat [%e, %rest] {{axis = 3}}
          return %y
        }}""",
        after=f"""{head}
          %q = slice %p {{axis = 3, start = 16, stop = 32}}
          %y = rope %q, %cos, %sin {{width = 8}}
          return %y
        }}""",
    )
