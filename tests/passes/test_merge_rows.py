"""merge-rows: norms and rotations of the same tokens, in one op."""

from __future__ import annotations

import pytest

from fuseline.passes.merge_rows import MergeRows
from fuseline.testing import assert_no_rewrite, assert_rewrites

PASS = MergeRows()

ARGS = """%q: T[1, S, 24], %kv: T[1, S, 20], %qn: T[24], %n: T[16], %cos: T[1, 1, S, 4],
  %sin: T[1, 1, S, 4]"""
COLUMNS = """
  %c = slice %kv {axis = 2, stop = 16}
  %k = slice %kv {axis = 2, start = 16, stop = 20}"""
TABLES = """
  %cs = reshape %cos {shape = (1, S, 4)}
  %sn = reshape %sin {shape = (1, S, 4)}"""


def func(body: str, args: str = ARGS, dtype: str = "f32") -> str:
    text = args.replace(": T[", f": {dtype}[").replace("<T[", f"<{dtype}[")
    return f"func @f({text}) where S in 0..16 {{{body}\n}}"


NORMS = """
  %qz = rms_norm %q, %qn
  %cz = rms_norm %c, %n"""


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", ["1, 1, S, 4", "1, S, 1, 4"])
def test_norms_around_a_rotation(dtype: str, shape: str) -> None:
    """Heads before tokens or behind them: there is one. Norms come first in the op."""
    args = ARGS.replace("1, 1, S, 4", shape)
    run = assert_rewrites(
        PASS,
        before=func(
            COLUMNS
            + f"""
            %qz = rms_norm %q, %qn
            %kh = reshape %k {{shape = ({shape})}}
            %kr = rope %kh, %cos, %sin {{width = 4, style = "interleaved"}}
            %cz = rms_norm %c, %n
            return %qz, %cz, %kr""",
            args,
            dtype,
        ),
        after=func(
            COLUMNS
            + TABLES
            + f"""
            %qz, %cz, %kt = merged_rows [%q, %c], [%qn, %n], [%k], %cs, %sn {{
              width = 4, style = "interleaved"}}
            %kr = reshape %kt {{shape = ({shape})}}
            return %qz, %cz, %kr""",
            args,
            dtype,
        ),
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("merged_rows", "fused")
    assert site.details["rows"] == "norm of 24, norm of 16, rotation of 4"


def test_three_norms_of_parts_of_a_product() -> None:
    """Jamba norms the three parts that its state-space layer selects by."""
    parts = """
      %a = slice %q {axis = 2, stop = 10}
      %b = slice %q {axis = 2, start = 10, stop = 17}
      %d = slice %q {axis = 2, start = 17, stop = 24}"""
    args = "%q: T[2, S, 24], %u: T[10], %v: T[7], %w: T[7]"
    assert_rewrites(
        PASS,
        before=func(
            parts
            + """
            %x = rms_norm %a, %u {eps = 1e-05}
            %y = rms_norm %b, %v {eps = 1e-05}
            %z = rms_norm %d, %w {eps = 1e-05}
            return %x, %y, %z""",
            args,
        ),
        after=func(
            parts
            + """
            %x, %y, %z = merged_rows [%a, %b, %d], [%u, %v, %w], [] {eps = 1e-05}
            return %x, %y, %z""",
            args,
        ),
    )


def test_rows_without_a_dim_of_batch() -> None:
    args = "%q: T[S, 24], %c: T[S, 16]"
    assert_rewrites(
        PASS,
        before=func("\n %x = rms_norm %q\n %y = rms_norm %c\n return %x, %y", args),
        after=func(
            """
            %a = reshape %q {shape = (1, S, 24)}
            %b = reshape %c {shape = (1, S, 16)}
            %u, %v = merged_rows [%a, %b], [], []
            %x = reshape %u {shape = (S, 24)}
            %y = reshape %v {shape = (S, 16)}
            return %x, %y""",
            args,
        ),
    )


def test_past_the_product_that_reads_the_first() -> None:
    """Products that cannot be merged: that of q's latent moves behind the norms."""
    args = ARGS + ", %wq: T[9, 24], %wk: T[16, 24]"
    assert_rewrites(
        PASS,
        before=func(
            """
            %qz = rms_norm %q, %qn
            %y = linear %qz, %wq
            %c = linear %q, %wk
            %cz = rms_norm %c, %n
            return %y, %cz""",
            args,
        ),
        after=func(
            """
            %c = linear %q, %wk
            %qz, %cz = merged_rows [%q, %c], [%qn, %n], []
            %y = linear %qz, %wq
            return %y, %cz""",
            args,
        ),
    )


def test_no_merge_of_what_lies_far_apart() -> None:
    """What waits for the later one would keep its memory until then."""
    steps = "".join(f"\n  %s{i + 1} = mul %s{i}, %s{i}" for i in range(5))
    body = f"""
      %s0 = rms_norm %q, %qn {steps}
      %c = slice %kv {{axis = 2, stop = 16}}
      %cz = rms_norm %c, %n
      return %s5, %cz"""
    assert_no_rewrite(PASS, func(body), None)
    assert_rewrites(
        MergeRows(near=5),
        before=func(body),
        after=func(f"""
          %c = slice %kv {{axis = 2, stop = 16}}
          %s0, %cz = merged_rows [%q, %c], [%qn, %n], [] {steps}
          return %s5, %cz"""),
    )


UNLIKE = {
    "it reads the other": (
        "%a = slice %qz {axis = 2, stop = 16}  %cz = rms_norm %a, %n",
        "the norm of the result of slice behind it needs what the norm of q gives",
    ),
    "other tokens": (
        "%cz = rms_norm %few",
        "is of 1 x 3 tokens, not of 1 x S",
    ),
    "another eps": ("%cz = rms_norm %c, %n {eps = 1e-05}", "has eps 1e-05, not 1e-06"),
    "another rounding": (
        '%cz = rms_norm %c, %n {cast = "last"}',
        "has cast last, not before_weight",
    ),
    "no weight": ("%cz = rms_norm %c", "has no weight, not a weight of f32"),
    "a cast between": ("%a = cast %c {dtype = bf16}  %cz = rms_norm %a", None),
    "another type": ("%cz = rms_norm %other", "is of f16, not of f32"),
    "long rows": ("%cz = rms_norm %long", "is of rows f32[1, S, 8200]; a block holds 32768 bytes"),
}
"""What stands behind the norm of q, and a part of the reason, None where there is none."""


@pytest.mark.parametrize("name", UNLIKE)
def test_no_merge_of(name: str) -> None:
    line, reason = UNLIKE[name]
    args = ARGS + ", %other: f16[1, S, 8], %few: f32[1, 3, 8], %long: f32[1, S, 8200]"
    body = COLUMNS + f"\n  %qz = rms_norm %q, %qn\n  {line}\n  return %qz, %cz"
    run = assert_no_rewrite(PASS, func(body, args), reason)
    sites = {(s.pattern, s.status) for s in run.sites()}
    assert sites >= {("rms_norm", "fused")}, "both are norms still"
    assert len([s for s in run.sites() if s.pattern == "rms_norm"]) == 2


def test_no_merge_past_a_write_that_the_other_reads() -> None:
    args = ARGS + ", %at: i64[S], %cache: buffer<T[1, 16, 24]>"
    body = """
      %qz = rms_norm %q, %qn
      index_write %cache, %at, %qz {axis = 1}
      %all = read %cache
      %a = slice %all {axis = 1, stop = S}
      %cz = rms_norm %a, %qn
      return %qz, %cz"""
    reason = "the norm of the result of slice behind it needs what the norm of q gives"
    assert_no_rewrite(PASS, func(body, args), reason)


def test_a_write_that_it_does_not_read_moves_behind() -> None:
    args = ARGS + ", %at: i64[S], %cache: buffer<T[1, 16, 24]>"
    write = "\n  index_write %cache, %at, %qz {axis = 1}"
    end = "\n  %all = read %cache\n  return %all, %cz"
    assert_rewrites(
        PASS,
        before=func(
            COLUMNS + "\n  %qz = rms_norm %q, %qn" + write + "\n  %cz = rms_norm %c, %n" + end, args
        ),
        after=func(
            COLUMNS + "\n  %qz, %cz = merged_rows [%q, %c], [%qn, %n], []" + write + end, args
        ),
    )


def test_no_merge_of_rotations_by_other_tables() -> None:
    body = """
      %a = rope %x, %cos, %sin {width = 4}
      %b = rope %x, %sin, %cos {width = 4}
      return %a, %b"""
    args = "%x: T[2, 1, S, 8], %cos: T[1, 1, S, 4], %sin: T[1, 1, S, 4]"
    assert_no_rewrite(PASS, func(body, args), "the rotation of x behind it has other tables")


def test_rotations_by_the_same_tables() -> None:
    args = "%x: T[2, 1, S, 8], %z: T[2, 1, S, 6], %cos: T[1, 1, S, 4], %sin: T[1, 1, S, 4]"
    assert_rewrites(
        PASS,
        before=func(
            """
            %a = rope %x, %cos, %sin {start = 2, width = 4}
            %b = rope %z, %cos, %sin {start = 2, width = 4}
            return %a, %b""",
            args,
        ),
        after=func(
            """
            %xr = reshape %x {shape = (2, S, 8)}
            %zr = reshape %z {shape = (2, S, 6)}
            %cs = reshape %cos {shape = (1, S, 4)}
            %sn = reshape %sin {shape = (1, S, 4)}
            %u, %v = merged_rows [], [], [%xr, %zr], %cs, %sn {start = 2, width = 4}
            %a = reshape %u {shape = (2, 1, S, 8)}
            %b = reshape %v {shape = (2, 1, S, 6)}
            return %a, %b""",
            args,
        ),
    )


def test_no_merge_of_several_heads() -> None:
    """Rows of a token are one each; q and k of an attention are found before."""
    body = """
      %a = rope %x, %cos, %sin {width = 4}
      %b = rms_norm %y
      return %a, %b"""
    args = "%x: T[2, 3, S, 8], %y: T[2, S, 8], %cos: T[1, 1, S, 4], %sin: T[1, 1, S, 4]"
    assert_no_rewrite(PASS, func(body, args), None)
