"""fuse-mla: norms, rotation and cache writes before attention over a latent, in one op."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_mla import FuseMla
from fuseline.passes.fuse_qk_norm import FuseQkNorm
from fuseline.passes.fuse_qk_rope import FuseQkRope
from fuseline.passes.merge_linears import MergeLinears
from fuseline.testing import assert_no_rewrite, assert_rewrites

PASS = FuseMla()

ARGS = """%x: T[2, S, 10], %ln: T[14], %qn: T[6], %cos: T[1, 1, S, 4], %sin: T[1, 1, S, 4],
  %wa: T[6, 10] = param "q_a", %wk: T[18, 10] = param "kv_a", %wq: T[36, 6] = param "q_b",
  %w: T[48, 14] = param "kv_b" """
CACHES = """, %at: i64[S], %lc: buffer<T[2, 1, 16, 14]>, %kc: buffer<T[2, 1, 16, 4]>"""

PRODUCTS = """
  %qa = linear %x, %wa
  %kv = linear %x, %wk"""
MERGED = """
  %qa, %kv = merged_linear %x, [%wa, %wk]"""
COLUMNS = """
  %c = slice %kv {axis = 2, stop = 14}
  %r = slice %kv {axis = 2, start = 14, stop = 18}"""
QUERIES = """
  %qb = linear %qz, %wq
  %qh = reshape %qb {shape = (2, S, 4, 9)}
  %qt = permute %qh {dims = (0, 2, 1, 3)}
  %q = rope %qt, %cos, %sin {start = 5, width = 4}"""
ROWS = """
  %qz = rms_norm %qa, %qn
  %cn = rms_norm %c, %ln
  %ch = reshape %cn {shape = (2, 1, S, 14)}
  %rh = reshape %r {shape = (2, 1, S, 4)}
  %rr = rope %rh, %cos, %sin {width = 4}"""
TABLES = """
  %tc = reshape %cos {shape = (1, S, 4)}
  %ts = reshape %sin {shape = (1, S, 4)}"""
FUSED = """
  %cn, %kr, %qz = mla_projection %c, %r, %qa, %ln, %qn, %tc, %ts {width = 4}
  %ch = reshape %cn {shape = (2, 1, S, 14)}
  %rr = reshape %kr {shape = (2, 1, S, 4)}"""
WITHOUT_Q = """
  %cn, %kr = mla_projection %c, %r, _, %ln, _, %tc, %ts {width = 4}
  %ch = reshape %cn {shape = (2, 1, S, 14)}
  %rr = reshape %kr {shape = (2, 1, S, 4)}"""
WRITES = """
  index_write %lc, %at, %ch {axis = 2}
  %ls = read %lc
  index_write %kc, %at, %rr {axis = 2}
  %ks = read %kc"""
OVER_CACHES = """
  %y = latent_attention %q, %ls, %w, %ks, _, %at {key = 5, value = 7, scale = 0.4}
  return %y"""
END = """
  %y = latent_attention %q, %ch, %w, %rr {key = 5, value = 7, scale = 0.4, causal = true}
  return %y"""


def func(body: str, args: str = ARGS, dtype: str = "f32", more: str = "") -> str:
    text = (args + more).replace(": T[", f": {dtype}[").replace("<T[", f"<{dtype}[")
    return f"func @f({text}) where S in 1..16 {{{body}\n}}"


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_both_norms_and_the_rotation(dtype: str) -> None:
    """DeepSeek-V3: q_a and kv_a are siblings, and all of it is one site."""
    run = assert_rewrites(
        (MergeLinears(), PASS, FuseQkNorm(), FuseQkRope()),
        before=func(PRODUCTS + COLUMNS + ROWS + QUERIES + END, dtype=dtype),
        after=func(MERGED + COLUMNS + TABLES + FUSED + QUERIES + END, dtype=dtype),
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("mla", "fused")
    assert site.details["q"] == "low-rank, 6"
    assert site.details["rotation"] == "half, 4 wide"
    assert site.details["swallowed"] == "merged_linear"


def test_written_into_the_caches() -> None:
    fused = """
      %qz = mla_projection_write %c, %r, %qa, %ln, %qn, %tc, %ts, %at, %lc, %kc {width = 4}"""
    reads = """
      %ls = read %lc
      %ks = read %kc"""
    end = """
      %y = latent_attention %q, %ls, %w, %ks, _, %at {
        key = 5, value = 7, scale = 0.4, causal = true}
      return %y"""
    run = assert_rewrites(
        PASS,
        before=func(MERGED + COLUMNS + ROWS + WRITES + QUERIES + end, more=CACHES),
        after=func(MERGED + COLUMNS + TABLES + fused + QUERIES + reads + end, more=CACHES),
    )
    (site,) = run.sites()
    assert site.details["rows"] == "written in place"
    assert site.details["cache"] == "latent, in lc"


EXPANDED = """
  %both = linear %ch, %w
  %heads = reshape %both {shape = (2, S, 4, 12)}
  %t = permute %heads {dims = (0, 2, 1, 3)}
  %n = slice %t {axis = 3, stop = 5}
  %each = expand %rr {shape = (2, 4, S, 4)}
  %k = concat [%n, %each] {axis = 3}
  index_write %lc, %at, %k {axis = 2}
  %ks = read %lc
  %v = slice %t {axis = 3, start = 5, stop = 12}
  index_write %kc, %at, %v {axis = 2}
  %vs = read %kc"""
WIDE = """, %at: i64[S], %lc: buffer<T[2, 4, 16, 9]>, %kc: buffer<T[2, 4, 16, 7]>"""
OVER_HEADS = """
  %y = attention %q, %ks, %vs, _, %at {scale = 0.4, causal = true}
  return %y"""


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_caches_of_keys_and_values(dtype: str) -> None:
    """The same rows stand before the expansion; the site is that of the attention."""
    run = assert_rewrites(
        (MergeLinears(), PASS, FuseQkNorm(), FuseQkRope()),
        before=func(
            PRODUCTS + COLUMNS + ROWS + EXPANDED + QUERIES + OVER_HEADS, dtype=dtype, more=WIDE
        ),
        after=func(
            MERGED + COLUMNS + TABLES + FUSED + QUERIES + EXPANDED + OVER_HEADS,
            dtype=dtype,
            more=WIDE,
        ),
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("mla", "fused")
    assert site.details["cache"] == "expanded keys and values, in lc and kc"
    each = {"f32": 4}.get(dtype, 2)
    assert site.details["cache bytes per token"] == f"{18 * each} latent, {64 * each} expanded"


def test_no_latent_in_ordinary_keys_and_values() -> None:
    """Products of x itself, and no narrower latent: attention with a rotated part."""
    body = """
      %kv = linear %x, %wkv
      %heads = reshape %kv {shape = (2, S, 4, 12)}
      %t = permute %heads {dims = (0, 2, 1, 3)}
      %n = slice %t {axis = 3, stop = 5}
      %v = slice %t {axis = 3, start = 5, stop = 12}
      index_write %lc, %at, %n {axis = 2}
      index_write %kc, %at, %v {axis = 2}
      %ks = read %lc
      %vs = read %kc
      %y = attention %q, %ks, %vs, _, %at {scale = 0.4, causal = true}
      return %y"""
    args = (
        """%x: T[2, S, 60], %q: T[2, 4, S, 5], %wkv: T[48, 60] = param "kv", %at: i64[S],"""
        """ %lc: buffer<T[2, 4, 16, 5]>, %kc: buffer<T[2, 4, 16, 7]>"""
    )
    assert_no_rewrite(PASS, func(body, args=args), None)


@pytest.mark.parametrize("others", [", %ch", ", %rr"])
def test_rows_that_others_read_are_computed_and_written(others: str) -> None:
    assert_rewrites(
        PASS,
        before=func(MERGED + COLUMNS + ROWS + WRITES + QUERIES + OVER_CACHES + others, more=CACHES),
        after=func(
            MERGED + COLUMNS + TABLES + FUSED + QUERIES + WRITES + OVER_CACHES + others, more=CACHES
        ),
    )


@pytest.mark.parametrize("start", [0, 1])
def test_writes_into_a_part_of_the_caches_stay(start: int) -> None:
    """The caches are of a larger batch: the fused op writes whole ones."""
    origin = f", origin = ({start}, 0, 0, 0)" if start else ""
    part = f"axis = 0, start = {start}, stop = {start + 2}"
    writes = f"""
      index_write %lc, %at, %ch {{axis = 2{origin}}}
      %la = read %lc
      %ls = slice %la {{{part}}}
      index_write %kc, %at, %rr {{axis = 2{origin}}}
      %ka = read %kc
      %ks = slice %ka {{{part}}}"""
    more = CACHES.replace("buffer<T[2", "buffer<T[4")
    assert_rewrites(
        PASS,
        before=func(MERGED + COLUMNS + ROWS + writes + QUERIES + OVER_CACHES, more=more),
        after=func(MERGED + COLUMNS + TABLES + FUSED + QUERIES + writes + OVER_CACHES, more=more),
    )


def test_writes_at_other_places_stay() -> None:
    """Two indices that are not the same value."""
    writes = WRITES.replace("%kc, %at", "%kc, %to")
    more = CACHES + ", %to: i64[S]"
    assert_rewrites(
        PASS,
        before=func(MERGED + COLUMNS + ROWS + writes + QUERIES + OVER_CACHES, more=more),
        after=func(MERGED + COLUMNS + TABLES + FUSED + QUERIES + writes + OVER_CACHES, more=more),
    )


def test_scaled_latent_without_rotation_and_direct_query() -> None:
    """LongCat's factor behind the norm; Kimi's keys that carry no positions."""
    args = ARGS.replace("%x:", "%q: T[2, 4, S, 9], %x:")
    before = """
      %kv = linear %x, %wk
      %c = slice %kv {axis = 2, stop = 14}
      %r = slice %kv {axis = 2, start = 14, stop = 18}
      %cn = rms_norm %c, %ln {eps = 1e-05}
      %two = full {value = 2.5, shape = (), dtype = f32}
      %cs = mul %cn, %two
      %ch = reshape %cs {shape = (2, 1, S, 14)}
      %rr = reshape %r {shape = (2, 1, S, 4)}"""
    after = """
      %kv = linear %x, %wk
      %c = slice %kv {axis = 2, stop = 14}
      %r = slice %kv {axis = 2, start = 14, stop = 18}
      %cs = mla_projection %c, _, _, %ln {eps = 1e-05, scale = 2.5}
      %ch = reshape %cs {shape = (2, 1, S, 14)}
      %rr = reshape %r {shape = (2, 1, S, 4)}"""
    run = assert_rewrites(PASS, before=func(before + END, args), after=func(after + END, args))
    assert run.sites()[0].details["rotation"] == "none"


def test_norm_of_another_kind_is_left_out() -> None:
    rows = ROWS.replace("%qa, %qn", "%qa, %qn {eps = 0.001}")
    norm = """
      %qz = rms_norm %qa, %qn {eps = 0.001}"""
    run = assert_rewrites(
        PASS,
        before=func(MERGED + COLUMNS + rows + QUERIES + END),
        after=func(MERGED + COLUMNS + norm + TABLES + WITHOUT_Q + QUERIES + END),
    )
    (site,) = [s for s in run.sites() if s.pattern == "mla"]
    reason = "the norm of q's latent has eps 0.001, that of the latent 1e-06"
    assert site.details["left out"] == reason


def test_norm_before_a_direct_query_is_that_of_the_block() -> None:
    """Keys and queries read the same normed x: its norm is no part of the site."""
    args = ARGS.replace("%wq: T[36, 6]", "%wq: T[36, 10]") + ", %hidden: T[2, S, 10], %bn: T[10]"
    products = """
      %xn = rms_norm %hidden, %bn {eps = 0.001}
      %qb, %kv = merged_linear %xn, [%wq, %wk]"""
    queries = QUERIES.replace("\n  %qb = linear %qz, %wq", "")
    rows = ROWS.replace("\n  %qz = rms_norm %qa, %qn", "")
    run = assert_rewrites(
        PASS,
        before=func(products + COLUMNS + rows + queries + END, args),
        after=func(products + COLUMNS + TABLES + WITHOUT_Q + queries + END, args),
    )
    (site,) = [s for s in run.sites() if s.pattern == "mla"]
    assert site.details["q"] == "direct"
    assert "left out" not in site.details


def test_queries_that_need_the_keys_are_left_out() -> None:
    """A cycle: q's latent is made of the normed latent of the keys."""
    products = """
      %qa = linear %cn, %wa
      %kv = linear %x, %wk"""
    rows = "\n %cn = rms_norm %c, %ln" + products.splitlines()[1]
    rows += ROWS.replace("\n  %cn = rms_norm %c, %ln", "")
    args = ARGS.replace("%wa: T[6, 10]", "%wa: T[6, 14]")
    before = products.splitlines()[2] + COLUMNS + rows + QUERIES + END
    after = """
      %cn, %kr = mla_projection %c, %r, _, %ln, _, %tc, %ts {width = 4}
      %qa = linear %cn, %wa
      %qz = rms_norm %qa, %qn
      %ch = reshape %cn {shape = (2, 1, S, 14)}
      %rr = reshape %kr {shape = (2, 1, S, 4)}"""
    assert_rewrites(
        PASS,
        before=func("\n" + before, args),
        after=func(
            "\n" + products.splitlines()[2] + COLUMNS + TABLES + after + QUERIES + END, args
        ),
    )


def test_no_rewrite_where_nothing_is_done_to_the_rows() -> None:
    args = "%q: f32[2, 4, S, 9], %c: f32[2, 1, S, 14], %r: f32[2, 1, S, 4], %w: f32[48, 14]"
    body = END.replace("%ch", "%c").replace("%rr", "%r")
    assert_no_rewrite(PASS, func(body, args), None)


def test_no_pair_with_a_key_that_is_rotated_in_part() -> None:
    """Where the latent is not recognised (a bias), the rotations are not those of a pair."""
    args = """%q: f32[2, 4, S, 9], %n: f32[2, 4, S, 5], %r: f32[2, 1, S, 4], %v: f32[2, 4, S, 7],
      %cos: f32[1, 1, S, 4], %sin: f32[1, 1, S, 4]"""
    body = """
      %qr = rope %q, %cos, %sin {start = 5, width = 4}
      %rr = rope %r, %cos, %sin {width = 4}
      %each = expand %rr {shape = (2, 4, S, 4)}
      %k = concat [%n, %each] {axis = 3}
      %y = attention %qr, %k, %v {scale = 0.4, causal = true}
      return %y"""
    assert_no_rewrite((FuseQkNorm(), FuseQkRope()), func(body, args), None)
