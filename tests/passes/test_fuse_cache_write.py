"""fuse-cache-write: keys and values straight into a static cache, and when they may not."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_cache_write import FuseCacheWrite
from fuseline.passes.fuse_qk_norm import FuseQkNorm
from fuseline.testing import assert_no_rewrite, assert_rewrites

HEAD = """func @f(%q: bf16[2, S, 6, 6], %k: bf16[2, S, 3, 6], %v: bf16[2, S, 3, 5], %w: bf16[6],
  %at: i64[S], %kc: buffer<bf16[2, 3, 16, 6]>, %vc: buffer<bf16[2, 3, 16, 5]>)
  where S in 0..16 {"""
NORM = "\n%qr, %kr = qk_norm_rope %q, %k, %w, %w"
SWAP = "\n%vt = permute %v {dims = (0, 2, 1, 3)}"
WRITES = "\nindex_write %kc, %at, %kr {axis = 2}\nindex_write %vc, %at, %vt {axis = 2}"
READS = "\n%ks = read %kc\n%vs = read %vc"
END = """
  %y = attention %qr, %ks, %vs, _, %at {scale = 0.4, causal = true}
  return %y
}"""
FUSED = "\n%qr = qk_norm_rope_write %q, %k, %v, %at, %kc, %vc, %w, %w"


def test_writes_at_once_with_values_of_another_width() -> None:
    assert_rewrites(
        FuseCacheWrite(), HEAD + NORM + SWAP + WRITES + READS + END, HEAD + FUSED + READS + END
    )


def test_reads_between_the_writes_are_of_the_other_cache() -> None:
    """A cache layer may hand out the keys before it writes the values."""
    body = """
      index_write %kc, %at, %kr {axis = 2}
      %ks = read %kc
      %vt = permute %v {dims = (0, 2, 1, 3)}
      index_write %vc, %at, %vt {axis = 2}
      %vs = read %vc"""
    assert_rewrites(FuseCacheWrite(), HEAD + NORM + body + END, HEAD + FUSED + READS + END)


def test_values_of_another_order_are_permuted() -> None:
    head = HEAD.replace("%v: bf16[2, S, 3, 5]", "%vt: bf16[2, 3, S, 5]")
    swap = "\n%v = permute %vt {dims = (0, 2, 1, 3)}"
    assert_rewrites(
        FuseCacheWrite(), head + NORM + WRITES + READS + END, head + swap + FUSED + READS + END
    )


def test_no_write_into_a_part_of_a_cache() -> None:
    """The caches are of a larger batch: the fused op writes whole ones."""
    head = HEAD.replace("buffer<bf16[2", "buffer<bf16[4")
    reads = """
      %ka = read %kc
      %va = read %vc
      %ks = slice %ka {axis = 0, start = 1, stop = 3}
      %vs = slice %va {axis = 0, start = 1, stop = 3}"""
    writes = WRITES.replace("axis = 2", "axis = 2, origin = (1, 0, 0, 0)")
    assert_no_rewrite(FuseCacheWrite(), head + NORM + SWAP + writes + reads + END, None)


def test_the_site_of_the_norm_lives_on() -> None:
    head = HEAD
    before = """
      %qn = rms_norm %q, %w
      %qr = permute %qn {dims = (0, 2, 1, 3)}
      %kn = rms_norm %k, %w
      %kr = permute %kn {dims = (0, 2, 1, 3)}"""
    run = assert_rewrites(
        (FuseQkNorm(), FuseCacheWrite()),
        head + before + SWAP + WRITES + READS + END,
        head + FUSED + READS + END,
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("qk_norm", "fused")
    assert site.details["cache"] == "written in place"


@pytest.mark.parametrize(
    "body",
    [
        # another reader of the keys
        NORM + SWAP + WRITES + READS + "\n%z = tanh %kr",
        # keys and values at different places
        NORM
        + SWAP
        + "\n%one = full {value = 1, dtype = i64}\n%to = add %at, %one"
        + WRITES.replace("%vc, %at", "%vc, %to")
        + READS,
        # both caches are read between the writes
        NORM
        + SWAP
        + "\nindex_write %kc, %at, %kr {axis = 2}\n%ks = read %kc\n%old = read %vc"
        + "\nindex_write %vc, %at, %vt {axis = 2}\n%vs = read %vc",
        # the values are computed from the new keys
        NORM
        + "\nindex_write %kc, %at, %kr {axis = 2}\n%ks = read %kc"
        + "\n%part = slice %ks {axis = 2, start = 0, stop = S}"
        + "\n%five = slice %part {axis = 3, start = 0, stop = 5}"
        + "\nindex_write %vc, %at, %five {axis = 2}\n%vs = read %vc",
        # written along another dim
        NORM
        + SWAP
        + "\n%head = iota {length = 3}\n%kf = slice %kr {axis = 2, start = 0, stop = S}"
        + "\nindex_write %vc, %at, %vt {axis = 2}"
        + READS,
    ],
    ids=["other-reader", "other-places", "reads-between", "from-new-keys", "no-key-write"],
)
def test_no_write_fused(body: str) -> None:
    end = END.replace("return %y", "return %y, %z" if "%z" in body else "return %y")
    end = end.replace("return %y", "return %y, %old") if "%old" in body else end
    assert_no_rewrite(FuseCacheWrite(), HEAD + body + end, None)


def test_no_write_fused_into_a_cache_of_another_type() -> None:
    head = HEAD.replace("%kc: buffer<bf16", "%kc: buffer<f32")
    casts = "\n%kf = cast %kr {dtype = f32}"
    writes = WRITES.replace("%kc, %at, %kr", "%kc, %at, %kf")
    reads = READS.replace("%ks = read %kc", "%kw = read %kc\n%ks = cast %kw {dtype = bf16}")
    assert_no_rewrite(FuseCacheWrite(), head + NORM + SWAP + casts + writes + reads + END, None)
