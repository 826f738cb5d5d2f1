"""cache-latents: latents in place of the keys and values that are expanded from them."""

from __future__ import annotations

import pytest

from fuseline.ir.text import parse_func
from fuseline.passes.cache_latents import CacheLatents
from fuseline.passes.raise_latent_attention import RaiseLatentAttention
from fuseline.testing import assert_no_rewrite, assert_same_values, run_passes

HEAD = """func @f(%q: bf16[2, 3, 2, 7], %c: bf16[2, 1, 5, 4], %r: bf16[2, 1, 5, 3],
  %w: bf16[27, 4] = param "kv_b", %b: bf16[27], %at: i64[5], %to: i64[5],
  %kc: buffer<bf16[2, 3, 5, 7]>, %vc: buffer<bf16[2, 3, 5, 5]>) {"""
EXPAND = """
  %kv = linear %c, %w
  %heads = reshape %kv {shape = (2, 5, 3, 9)}
  %t = permute %heads {dims = (0, 2, 1, 3)}
  %n = slice %t {axis = 3, stop = 4}
  %v = slice %t {axis = 3, start = 4, stop = 9}
  %each = expand %r {shape = (2, 3, 5, 3)}
  %k = concat [%n, %each] {axis = 3}"""
WRITES = "\nindex_write %kc, %at, %k {axis = 2}\nindex_write %vc, %at, %v {axis = 2}"
READS = "\n%ks = read %kc\n%vs = read %vc"
END = """
  %y = attention %q, %ks, %vs {scale = 0.4}
  return %y
}"""


def test_steps_attend_over_the_latents() -> None:
    before = parse_func(HEAD + EXPAND + WRITES + READS + END)
    func = before.clone()
    run = run_passes([CacheLatents(), RaiseLatentAttention()], func)
    assert [op.name for op in func.ops] == [
        *("index_write", "index_write", "read", "read"),
        "latent_attention",
    ]
    assert [str(a.type) for a in func.args[-2:]] == [
        "buffer<bf16[2, 1, 5, 4]>",
        "buffer<bf16[2, 1, 5, 3]>",
    ]
    assert not [u for a in func.args if a.hint in ("kc", "vc") for u in func.users(a)]
    assert_same_values(before, func, exact=False)
    (site,) = [s for s in run.sites() if s.pattern == "latent_cache"]
    assert site.details["cache bytes per token"] == "14 latent, 72 expanded"


def test_a_prefill_that_attends_within_itself_writes_latents_too() -> None:
    """The program that fills the caches and the one that reads them must agree."""
    body = EXPAND + WRITES + "\n%y = attention %q, %k, %v {scale = 0.4}\nreturn %y }"
    before = parse_func(HEAD + body)
    func = before.clone()
    run_passes([CacheLatents(), RaiseLatentAttention()], func)
    assert [op.name for op in func.ops] == ["index_write", "index_write", "latent_attention"]
    assert_same_values(before, func, exact=False)


def test_the_shared_part_may_come_first_and_values_have_a_weight_of_their_own() -> None:
    head = HEAD.replace("bf16[27, 4]", "bf16[12, 4]").replace("%b: bf16[27]", "%u: bf16[15, 4]")
    body = """
      %n0 = linear %c, %w
      %n1 = reshape %n0 {shape = (2, 5, 3, 4)}
      %n = permute %n1 {dims = (0, 2, 1, 3)}
      %v0 = linear %c, %u
      %v1 = reshape %v0 {shape = (2, 5, 3, 5)}
      %v = permute %v1 {dims = (0, 2, 1, 3)}
      %each = expand %r {shape = (2, 3, 5, 3)}
      %k = concat [%each, %n] {axis = 3}"""
    before = parse_func(head + body + WRITES + READS + END)
    func = before.clone()
    run_passes([CacheLatents(), RaiseLatentAttention()], func)
    assert "latent_attention" in [op.name for op in func.ops]
    assert not [u for a in func.args if a.hint in ("kc", "vc") for u in func.users(a)]
    assert_same_values(before, func, exact=False)


def test_a_model_without_a_shared_part() -> None:
    head = HEAD.replace("%q: bf16[2, 3, 2, 7]", "%q: bf16[2, 3, 2, 4]")
    head = head.replace("bf16[2, 3, 5, 7]", "bf16[2, 3, 5, 4]")
    body = EXPAND.replace("%n = slice", "%k = slice").rsplit("\n", 2)[0]
    before = parse_func(head + body + WRITES + READS + END)
    func = before.clone()
    run_passes([CacheLatents(), RaiseLatentAttention()], func)
    assert [op.name for op in func.ops] == ["index_write", "read", "latent_attention"]
    assert_same_values(before, func, exact=False)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("linear %c, %w", "linear %c, %w, %b", "has a bias"),
        (
            "%vs = read %vc",
            "%vs = read %vc\nwrite %vc, %vs",
            "the cache vc is written by write too",
        ),
        ("index_write %kc", "%old = read %kc\nindex_write %kc", "the cache kc is read before"),
    ],
)
def test_no_latent_cache_where_it_would_change_what_is_read(
    old: str, new: str, reason: str
) -> None:
    assert_no_rewrite(
        CacheLatents(), (HEAD + EXPAND + WRITES + READS + END).replace(old, new), reason
    )


def test_no_latent_cache_of_part_of_a_batch() -> None:
    text = (HEAD + EXPAND + WRITES + READS + END).replace("buffer<bf16[2,", "buffer<bf16[4,")
    text = text.replace("%q: bf16[2,", "%q: bf16[4,")
    assert_no_rewrite(CacheLatents(), text, "is written to a part of kc")


def test_no_latent_cache_where_keys_and_values_go_to_different_places() -> None:
    text = (HEAD + EXPAND + WRITES + READS + END).replace("%vc, %at", "%vc, %to")
    assert_no_rewrite(CacheLatents(), text, None)


def test_no_latent_cache_of_ordinary_keys() -> None:
    text = """func @f(%q: f32[1, 2, 1, 4], %k: f32[1, 2, 3, 4], %v: f32[1, 2, 3, 4], %at: i64[3],
        %kc: buffer<f32[1, 2, 8, 4]>, %vc: buffer<f32[1, 2, 8, 4]>) {
      index_write %kc, %at, %k {axis = 2}
      index_write %vc, %at, %v {axis = 2}
      %ks = read %kc
      %vs = read %vc
      %y = attention %q, %ks, %vs {scale = 0.5}
      return %y
    }"""
    assert_no_rewrite(CacheLatents(), text, None)
