"""raise-attention: both spellings, repeated heads, and masks that become attributes."""

from __future__ import annotations

import math

import torch

from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.raised import Attention
from fuseline.ir.text import parse_func
from fuseline.passes.dce import Dce
from fuseline.passes.manager import PassManager
from fuseline.passes.raise_attention import RaiseAttention
from fuseline.passes.record import Run
from fuseline.testing import assert_no_rewrite, assert_rewrites, make_arguments

QKV = "%q: f32[B, 4, S, 8], %k: f32[B, 4, T, 8], %v: f32[B, 4, T, 6]"
ROWS = """%i = iota {length = S}
      %j = iota {length = T}
      %row = reshape %i {shape = (S, 1)}"""


def _details(run: Run) -> list[dict[str, str]]:
    return [dict(s.details) for s in run.sites() if s.pattern == "attention"]


# -- torch's op -----------------------------------------------------------------------------


def test_sdpa_without_a_mask() -> None:
    run = assert_rewrites(
        RaiseAttention(),
        f"func @f({QKV}) {{ %y = sdpa %q, %k, %v {{scale = 0.5}} return %y }}",
        f"func @f({QKV}) {{ %y = attention %q, %k, %v {{scale = 0.5}} return %y }}",
        exact=False,
    )
    assert _details(run) == [{"form": "torch's op", "heads": "4 over 4", "mask": "none"}]


def test_sdpa_takes_its_scale_from_the_head_width() -> None:
    scale = 1 / math.sqrt(8)
    assert_rewrites(
        RaiseAttention(),
        f"func @f({QKV}) {{ %y = sdpa %q, %k, %v return %y }}",
        f"func @f({QKV}) {{ %y = attention %q, %k, %v {{scale = {scale}}} return %y }}",
        exact=False,
    )


def test_sdpa_causal_flag_counts_from_the_first_key() -> None:
    """Also where there are more keys than queries: torch aligns at the upper left."""
    assert_rewrites(
        RaiseAttention(),
        f"func @f({QKV}) {{ %y = sdpa %q, %k, %v {{scale = 0.5, is_causal = true}} return %y }}",
        f"func @f({QKV}) {{ %y = attention %q, %k, %v {{scale = 0.5, causal = true}} return %y }}",
        exact=False,
    )


def test_sdpa_with_grouped_heads() -> None:
    grouped = "%q: bf16[2, 6, S, 8], %k: bf16[2, 3, T, 8], %v: bf16[2, 3, T, 8]"
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({grouped}) {{
          %y = sdpa %q, %k, %v {{scale = 0.5, enable_gqa = true}}
          return %y
        }}""",
        f"func @f({grouped}) {{ %y = attention %q, %k, %v {{scale = 0.5}} return %y }}",
        exact=False,
    )


def test_sdpa_without_a_batch() -> None:
    heads = "%q: f32[4, S, 8], %k: f32[4, T, 8], %v: f32[4, T, 6]"
    assert_rewrites(
        RaiseAttention(),
        f"func @f({heads}) {{ %y = sdpa %q, %k, %v {{scale = 0.5}} return %y }}",
        f"""func @f({heads}) {{
          %q4 = reshape %q {{shape = (1, 4, S, 8)}}
          %k4 = reshape %k {{shape = (1, 4, T, 8)}}
          %v4 = reshape %v {{shape = (1, 4, T, 6)}}
          %a = attention %q4, %k4, %v4 {{scale = 0.5}}
          %y = reshape %a {{shape = (4, S, 6)}}
          return %y
        }}""",
        exact=False,
    )


def test_no_raise_where_the_scale_is_not_known() -> None:
    assert_no_rewrite(
        RaiseAttention(),
        """func @f(%q: f32[2, 4, S, D], %k: f32[2, 4, T, D], %v: f32[2, 4, T, D]) {
          %y = sdpa %q, %k, %v
          return %y
        }""",
        "the head width D",
    )


def test_no_raise_of_a_shared_batch() -> None:
    assert_no_rewrite(
        RaiseAttention(),
        """func @f(%q: f32[B, 4, S, 8], %k: f32[1, 4, T, 8], %v: f32[1, 4, T, 8]) {
          %y = sdpa %q, %k, %v
          return %y
        }""",
        "differ in their batch",
    )


# -- repeated heads -------------------------------------------------------------------------


KV = "%q: f32[B, 6, S, 8], %k: f32[B, 2, T, 8], %v: f32[B, 2, T, 8]"
RAISED_KV = f"""func @f({KV}) {{
  %y = attention %q, %k, %v {{scale = 0.5}}
  return %y
}}"""


def test_heads_repeated_by_expand_and_reshape() -> None:
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({KV}) {{
          %k1 = reshape %k {{shape = (B, 2, 1, T, 8)}}
          %k2 = expand %k1 {{shape = (B, 2, 3, T, 8)}}
          %k3 = reshape %k2 {{shape = (B, 6, T, 8)}}
          %v1 = reshape %v {{shape = (B, 2, 1, T, 8)}}
          %v2 = expand %v1 {{shape = (B, 2, 3, T, 8)}}
          %v3 = reshape %v2 {{shape = (B, 6, T, 8)}}
          %y = sdpa %q, %k3, %v3 {{scale = 0.5}}
          return %y
        }}""",
        RAISED_KV,
        exact=False,
    )


def test_heads_repeated_by_index() -> None:
    """``repeat_interleave`` may come as a gather by ``0, 0, 0, 1, 1, 1``."""
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({KV}) {{
          %h = iota {{length = 6}}
          %g = full {{value = 3, dtype = i64}}
          %which = floor_div %h, %g
          %k1 = index_select %k, %which {{axis = 1}}
          %v1 = index_select %v, %which {{axis = 1}}
          %y = sdpa %q, %k1, %v1 {{scale = 0.5}}
          return %y
        }}""",
        RAISED_KV,
        exact=False,
    )


def test_heads_repeated_before_they_are_moved_to_the_front() -> None:
    assert_rewrites(
        RaiseAttention(),
        """func @f(%q: f32[B, 4, S, 8], %kv: f32[B, T, 2, 8]) {
          %k1 = reshape %kv {shape = (B, T, 2, 1, 8)}
          %k2 = expand %k1 {shape = (B, T, 2, 2, 8)}
          %k3 = reshape %k2 {shape = (B, T, 4, 8)}
          %k4 = permute %k3 {dims = (0, 2, 1, 3)}
          %y = sdpa %q, %k4, %k4 {scale = 0.5}
          return %y
        }""",
        """func @f(%q: f32[B, 4, S, 8], %kv: f32[B, T, 2, 8]) {
          %k = permute %kv {dims = (0, 2, 1, 3)}
          %v = permute %kv {dims = (0, 2, 1, 3)}
          %y = attention %q, %k, %v {scale = 0.5}
          return %y
        }""",
        exact=False,
    )


def test_one_head_for_all() -> None:
    one = "%q: f32[B, 4, S, 8], %k: f32[B, 1, T, 8], %v: f32[B, 1, T, 8]"
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({one}) {{
          %k1 = expand %k {{shape = (B, 4, T, 8)}}
          %v1 = expand %v {{shape = (B, 4, T, 8)}}
          %y = sdpa %q, %k1, %v1 {{scale = 0.5}}
          return %y
        }}""",
        f"func @f({one}) {{ %y = attention %q, %k, %v {{scale = 0.5}} return %y }}",
        exact=False,
    )


def test_heads_that_alternate_are_not_grouped() -> None:
    """``0, 1, 0, 1``: head h is not a copy of head h // 2."""
    assert_rewrites(
        RaiseAttention(),
        """func @f(%q: f32[B, 4, S, 8], %k: f32[B, 2, T, 8]) {
          %k1 = reshape %k {shape = (B, 1, 2, T, 8)}
          %k2 = expand %k1 {shape = (B, 2, 2, T, 8)}
          %k3 = reshape %k2 {shape = (B, 4, T, 8)}
          %y = sdpa %q, %k3, %k3 {scale = 0.5}
          return %y
        }""",
        """func @f(%q: f32[B, 4, S, 8], %k: f32[B, 2, T, 8]) {
          %k1 = reshape %k {shape = (B, 1, 2, T, 8)}
          %k2 = expand %k1 {shape = (B, 2, 2, T, 8)}
          %k3 = reshape %k2 {shape = (B, 4, T, 8)}
          %y = attention %q, %k3, %k3 {scale = 0.5}
          return %y
        }""",
        exact=False,
    )


def test_heads_packed_as_queries_are_heads_again() -> None:
    """For one query, transformers packs the query heads of a group as its queries."""
    packed = "%q: f32[B, 6, 1, 8], %k: f32[B, 2, T, 8], %v: f32[B, 2, T, 8], %m: bool[B, 1, 1, T]"
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({packed}) {{
          %q1 = reshape %q {{shape = (B, 2, 3, 8)}}
          %a = sdpa %q1, %k, %v, %m {{scale = 0.5}}
          %y = reshape %a {{shape = (B, 6, 1, 8)}}
          return %y
        }}""",
        f"""func @f({packed}) {{
          %o = attention %q, %k, %v, %m {{scale = 0.5}}
          %a = reshape %o {{shape = (B, 2, 3, 8)}}
          %y = reshape %a {{shape = (B, 6, 1, 8)}}
          return %y
        }}""",
        exact=False,
    )


# -- masks ----------------------------------------------------------------------------------


def test_prefill_builds_no_mask() -> None:
    """As transformers traces it: a mask for several sequences in one, of which there is one."""
    assert_rewrites(
        RaiseAttention(),
        """func @f(%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 8]) where S in 1.. {
          %i = iota {length = S}
          %p = reshape %i {shape = (1, S)}
          %ps = expand %p {shape = (B, S)}
          %first = slice %ps {axis = 1, start = 0, stop = 1}
          %one = full {value = 1, dtype = i64}
          %before = sub %first, %one
          %joined = concat [%before, %ps] {axis = 1}
          %after = slice %joined {axis = 1, start = 1, stop = <S + 1>}
          %until = slice %joined {axis = 1, start = 0, stop = S}
          %step = sub %after, %until
          %breaks = ne %step, %one
          %sequence = cumsum %breaks {axis = 1}
          %ib = iota {length = B}
          %b = reshape %ib {shape = (B, 1, 1, 1)}
          %iq = reshape %i {shape = (1, 1, S, 1)}
          %ik = reshape %i {shape = (1, 1, 1, S)}
          %true = full {value = true, dtype = bool}
          %sq = index %sequence, [%b, %iq] {axes = (0, 1)}
          %sk = index %sequence, [%b, %ik] {axes = (0, 1)}
          %same = eq %sq, %sk
          %m1 = bitwise_and %true, %same
          %pq = index %ps, [%b, %iq] {axes = (0, 1)}
          %pk = index %ps, [%b, %ik] {axes = (0, 1)}
          %old = le %pk, %pq
          %m2 = bitwise_and %m1, %old
          %m = expand %m2 {shape = (B, 1, S, S)}
          %y = sdpa %q, %k, %v, %m {scale = 0.5}
          return %y
        }""",
        """func @f(%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 8]) where S in 1.. {
          %y = attention %q, %k, %v {scale = 0.5, causal = true}
          return %y
        }""",
        exact=False,
    )


CACHE = """%q: f32[2, 4, 1, 8], %new: f32[2, 2, 1, 8], %n: buffer<i64[]>,
  %ks: buffer<f32[2, 2, 9, 8]>, %vs: buffer<f32[2, 2, 9, 8]>"""


def test_decode_over_a_static_cache_builds_no_mask() -> None:
    """The mask's positions are the ones that the new key is written to."""
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({CACHE}) {{
          %len = read %n
          %i = iota {{length = 1}}
          %at = add %i, %len
          %q4 = reshape %at {{shape = (1, 1, 1, 1)}}
          %j = iota {{length = 9}}
          %k4 = reshape %j {{shape = (1, 1, 1, 9)}}
          %old = le %k4, %q4
          %m = expand %old {{shape = (2, 1, 1, 9)}}
          %one = full {{value = 1, dtype = i64}}
          %next = add %len, %one
          write %n, %next
          index_write %ks, %at, %new {{axis = 2}}
          index_write %vs, %at, %new {{axis = 2}}
          %k = read %ks
          %v = read %vs
          %k1 = reshape %k {{shape = (2, 2, 1, 9, 8)}}
          %k2 = expand %k1 {{shape = (2, 2, 2, 9, 8)}}
          %k3 = reshape %k2 {{shape = (2, 4, 9, 8)}}
          %v1 = reshape %v {{shape = (2, 2, 1, 9, 8)}}
          %v2 = expand %v1 {{shape = (2, 2, 2, 9, 8)}}
          %v3 = reshape %v2 {{shape = (2, 4, 9, 8)}}
          %y = sdpa %q, %k3, %v3, %m {{scale = 0.5}}
          return %y
        }}""",
        f"""func @f({CACHE}) {{
          %len = read %n
          %i = iota {{length = 1}}
          %at = add %i, %len
          %one = full {{value = 1, dtype = i64}}
          %next = add %len, %one
          write %n, %next
          index_write %ks, %at, %new {{axis = 2}}
          index_write %vs, %at, %new {{axis = 2}}
          %k = read %ks
          %v = read %vs
          %y = attention %q, %k, %v, _, %at {{scale = 0.5, causal = true}}
          return %y
        }}""",
        exact=False,
        given={"n": torch.tensor(4)},
    )


def test_positions_are_made_where_no_value_holds_them() -> None:
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({QKV}, %n: i64[B]) {{
          {ROWS}
          %nb = reshape %n {{shape = (B, 1, 1, 1)}}
          %late = add %row, %nb
          %m = le %j, %late
          %y = sdpa %q, %k, %v, %m {{scale = 0.5}}
          return %y
        }}""",
        f"""func @f({QKV}, %n: i64[B]) {{
          %i = iota {{length = S}}
          %nb = reshape %n {{shape = (B, 1)}}
          %at = add %i, %nb
          %y = attention %q, %k, %v, _, %at {{scale = 0.5, causal = true}}
          return %y
        }}""",
        exact=False,
    )


def test_layers_share_what_is_left_of_a_mask() -> None:
    func = parse_func(f"""func @f({QKV}, %pad: bool[B, T]) {{
      {ROWS}
      %old = le %j, %row
      %p = reshape %pad {{shape = (B, 1, 1, T)}}
      %m = bitwise_and %old, %p
      %a = sdpa %q, %k, %v, %m {{scale = 0.5}}
      %b = sdpa %q, %k, %v, %m {{scale = 0.25}}
      return %a, %b
    }}""")
    PassManager([RaiseAttention()], check=True).run(func)
    one, two = (op for op in func.ops if isinstance(op, Attention))
    assert one.mask is not None
    assert one.mask is two.mask
    assert one.causal
    assert two.causal


def test_a_mask_that_a_later_layer_needs_whole_survives() -> None:
    """A missed site keeps its own mask, and the fused one does not take it away."""
    func = parse_func(f"""func @f({QKV}, %k1: f32[1, 4, T, 8]) {{
      {ROWS}
      %m = le %j, %row
      %a = sdpa %q, %k, %v, %m {{scale = 0.5}}
      %b = sdpa %q, %k1, %v, %m {{scale = 0.5}}
      return %a, %b
    }}""")
    run = PassManager([RaiseAttention(), Dce()], check=True).run(func)
    statuses = {s.status for s in run.sites()}
    assert statuses == {"fused", "missed"}
    assert [op.name for op in func.ops if op.name in ("attention", "sdpa", "le")] == [
        "le",
        "attention",
        "sdpa",
    ]


# -- rows that see no key -------------------------------------------------------------------


def test_rows_without_a_key_are_zero_as_torch_has_it() -> None:
    before = f"""func @f({QKV}, %pad: bool[B, T]) {{
      %m = reshape %pad {{shape = (B, 1, 1, T)}}
      %y = sdpa %q, %k, %v, %m {{scale = 0.5}}
      return %y
    }}"""
    original, func = parse_func(before), parse_func(before)
    PassManager([RaiseAttention()], check=True).run(func)
    pad = torch.tensor([[False] * 5, [True] * 5])
    arguments = make_arguments(original, {"B": 2, "S": 3, "T": 5}, given={"pad": pad})
    want, got = evaluate(original, arguments)[0], evaluate(func, arguments)[0]
    assert want[0].eq(0).all()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1.3e-6)
