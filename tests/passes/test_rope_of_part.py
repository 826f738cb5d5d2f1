"""A partly rotated row that is itself a part of a larger one: q of a fused q, k, v projection."""

from __future__ import annotations

import pytest

from fuseline.ir.text import parse_func
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.fuse_qk_rope import FuseQkRope
from fuseline.passes.raise_rope import RaiseRope
from fuseline.testing import assert_rewrites, run_passes


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


@pytest.mark.parametrize("scaled", [False, True])
def test_cosines_of_repeated_angles_are_taken_of_the_angles(scaled: bool) -> None:
    """Every model: the angles are concatenated with themselves before the cosines."""
    head = "func @f(%x: bf16[B, 4, S, 16], %m: f32[1, S, 8], %by: f32[]) {"

    def tables(angles: str, width: int) -> str:
        lines: list[str] = []
        for name in ("cos", "sin"):
            lines.append(f"%{name}w = {name} {angles}")
            if scaled:
                lines.append(f"%{name}s = mul %{name}w, %by")
            lines.append(f"%{name}b = cast %{name}{'s' if scaled else 'w'} {{dtype = bf16}}")
            lines.append(f"%{name} = reshape %{name}b {{shape = (1, 1, S, {width})}}")
        return "\n".join(lines)

    assert_rewrites(
        (RaiseRope(), Dce()),
        before=f"""{head}
          %m2 = concat [%m, %m] {{axis = 2}}
          {tables("%m2", 16)}
          %u = slice %x {{axis = 3, start = 0, stop = 8}}
          %v = slice %x {{axis = 3, start = 8, stop = 16}}
          %n = neg %v
          %t = concat [%n, %u] {{axis = 3}}
          %a = mul %x, %cos
          %b = mul %t, %sin
          %y = add %a, %b
          return %y
        }}""",
        after=f"""{head}
          {tables("%m", 8)}
          %y = rope %x, %cos, %sin {{width = 16, table = "half"}}
          return %y
        }}""",
    )


def test_tables_that_outlive_a_rotation_are_no_site() -> None:
    """The cosines stay when the rotations become a part of a larger op."""
    lines = [f"%{name} = {name} %m2" for name in ("cos", "sin")]
    for x in "qk":
        lines += [
            f"%{x}u = slice %{x} {{axis = 3, start = 0, stop = 8}}",
            f"%{x}v = slice %{x} {{axis = 3, start = 8, stop = 16}}",
            f"%{x}n = neg %{x}v",
            f"%{x}t = concat [%{x}n, %{x}u] {{axis = 3}}",
            f"%{x}a = mul %{x}, %cos",
            f"%{x}b = mul %{x}t, %sin",
            f"%{x}y = add %{x}a, %{x}b",
        ]
    body = "\n".join(lines)
    func = parse_func(f"""
    func @f(%q: f32[2, 4, S, 16], %k: f32[2, 4, S, 16], %m: f32[1, 1, S, 8]) {{
      %m2 = concat [%m, %m] {{axis = 3}}
      {body}
      %y = attention %qy, %ky, %q {{scale = 0.25}}
      return %y
    }}""")
    run = run_passes((RaiseRope(), Cse(), Dce(), FuseQkRope()), func)
    assert [op.name for op in func.ops if op.name in ("rope", "qk_norm_rope")] == ["qk_norm_rope"]
    assert [(s.pattern, s.status) for s in run.sites()] == [("rope", "fused")]
