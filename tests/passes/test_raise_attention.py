"""raise-attention: both spellings, repeated heads, and masks that become attributes."""

from __future__ import annotations

import math
import re

import pytest
import torch

from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.matmul import Matmul, Sdpa
from fuseline.ir.ops.pointwise import Add, Where
from fuseline.ir.ops.raised import Attention
from fuseline.ir.ops.reduce import Softmax
from fuseline.ir.ops.view import Permute
from fuseline.ir.text import parse_func
from fuseline.ir.types import Dim, DType, TensorType
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.manager import PassManager, Run
from fuseline.passes.raise_attention import RaiseAttention
from fuseline.testing import assert_no_rewrite, assert_rewrites, canonical_text, make_arguments
from tests.passes.masks.random_masks import MaskMaker, MaskProgram

QKV = "%q: f32[B, 4, S, 8], %k: f32[B, 4, T, 8], %v: f32[B, 4, T, 6]"
ROWS = """%i = iota {length = S}
      %j = iota {length = T}
      %row = reshape %i {shape = (S, 1)}"""


def _assert_raises_within_the_rule(before: str, after: str) -> None:
    """Half precision: no further from the float64 oracle than 1.5 times the spelled-out form.

    The op rounds once where the spelled-out form rounds each step, so the two differ by more than
    the tolerances of one kernel.
    """
    eager, func = parse_func(before), parse_func(before)
    PassManager([RaiseAttention()], check=True).run(func)
    assert canonical_text(func) == canonical_text(parse_func(after))
    oracle = parse_func(re.sub(r"\b(bf16|f16|f32)\b", "f64", before))
    sizes = {"B": 2, "S": 5, "K": 7}
    arguments = [a for a in make_arguments(eager, sizes) if isinstance(a, torch.Tensor)]
    (want,) = evaluate(oracle, [a.double() for a in arguments], binding=sizes)
    squares = [
        float((evaluate(f, arguments, binding=sizes)[0].double() - want).square().sum())
        for f in (func, eager)
    ]
    assert squares[0] <= 1.5**2 * squares[1]


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


# -- spelled out ----------------------------------------------------------------------------


SPELLED = "%q: T[B, 4, S, 8], %k: T[B, 2, K, 8], %v: T[B, 2, K, 6]"


def _spelled(body: str, dtype: str = "f32", more: str = "") -> str:
    arguments = SPELLED.replace("T[", f"{dtype}[") + more
    return f"""func @f({arguments}) where B in 1.., S in 1.., K in 1.. {{
      %k1 = reshape %k {{shape = (B, 2, 1, K, 8)}}
      %k2 = expand %k1 {{shape = (B, 2, 2, K, 8)}}
      %k3 = reshape %k2 {{shape = (B, 4, K, 8)}}
      %kt = permute %k3 {{dims = (0, 1, 3, 2)}}
      %v1 = reshape %v {{shape = (B, 2, 1, K, 6)}}
      %v2 = expand %v1 {{shape = (B, 2, 2, K, 6)}}
      %v3 = reshape %v2 {{shape = (B, 4, K, 6)}}
      %qk = matmul %q, %kt
      {body}
      return %y
    }}"""


def _raised(call: str, dtype: str = "f32", more: str = "", before: str = "") -> str:
    arguments = SPELLED.replace("T[", f"{dtype}[") + more
    return f"""func @f({arguments}) where B in 1.., S in 1.., K in 1.. {{
      {before}
      %y = attention %q, %k, %v{call}
      return %y
    }}"""


def test_spelled_out_with_a_float32_softmax() -> None:
    """As transformers' eager attention does it in half precision."""
    for dtype in ("bf16", "f16"):
        _assert_raises_within_the_rule(
            _spelled(
                f"""%c = full {{value = 0.25, dtype = {dtype}}}
                %s = mul %qk, %c
                %wide = cast %s {{dtype = f32}}
                %w = softmax %wide {{axis = 3}}
                %n = cast %w {{dtype = {dtype}}}
                %y = matmul %n, %v3""",
                dtype,
            ),
            _raised(" {scale = 0.25}", dtype),
        )


def test_spelled_out_with_a_division_and_an_added_mask() -> None:
    assert_rewrites(
        RaiseAttention(),
        _spelled(
            """%c = full {value = 4.0, dtype = f32}
            %s = div %qk, %c
            %m = add %s, %bias
            %w = softmax %m {axis = 3}
            %y = matmul %w, %v3""",
            more=", %bias: f32[1, 4, S, K]",
        ),
        _raised(", %bias {scale = 0.25}", more=", %bias: f32[1, 4, S, K]"),
        exact=False,
    )


CAUSAL = """%i = iota {length = S}
      %row = reshape %i {shape = (S, 1)}
      %j = iota {length = K}
      %old = le %j, %row"""


@pytest.mark.parametrize("fill", ["-inf", "-3.4028234663852886e+38"])
def test_spelled_out_with_filled_scores(fill: str) -> None:
    assert_rewrites(
        RaiseAttention(),
        _spelled(
            f"""{CAUSAL}
            %hidden = logical_not %old
            %f = full {{value = {fill}, dtype = f32}}
            %m = where %hidden, %f, %qk
            %w = softmax %m {{axis = 3}}
            %y = matmul %w, %v3"""
        ),
        _raised(" {scale = 1.0, causal = true}"),
        exact=False,
    )


def test_spelled_out_with_a_softcap() -> None:
    """Scores are scaled, capped and then masked, as gemma2 does it."""
    assert_rewrites(
        RaiseAttention(),
        _spelled(
            f"""{CAUSAL}
            %c = full {{value = 0.3, dtype = f32}}
            %s = mul %qk, %c
            %cap = full {{value = 2.0, dtype = f32}}
            %d = div %s, %cap
            %t = tanh %d
            %u = mul %t, %cap
            %z = full {{value = 0.0, dtype = f32}}
            %f = full {{value = -3.4028234663852886e+38, dtype = f32}}
            %a = where %old, %z, %f
            %m = add %u, %a
            %w = softmax %m {{axis = 3}}
            %y = matmul %w, %v3"""
        ),
        _raised(" {scale = 0.3, causal = true, softcap = 2.0}"),
        exact=False,
    )


def test_spelled_out_with_sinks() -> None:
    """A logit a head is appended, the largest one subtracted, and the weight dropped: gpt_oss."""
    assert_rewrites(
        RaiseAttention(),
        _spelled(
            f"""{CAUSAL}
            %z = full {{value = 0.0, dtype = f32}}
            %f = full {{value = -3.4028234663852886e+38, dtype = f32}}
            %a = where %old, %z, %f
            %m = add %qk, %a
            %s1 = reshape %sinks {{shape = (1, 4, 1, 1)}}
            %s2 = expand %s1 {{shape = (B, 4, S, 1)}}
            %both = concat [%m, %s2] {{axis = 3}}
            %top = amax %both {{axes = (3,), keepdim = true}}
            %x = sub %both, %top
            %w = softmax %x {{axis = 3}}
            %d = slice %w {{axis = 3, start = 0, stop = K}}
            %y = matmul %d, %v3""",
            more=", %sinks: f32[4]",
        ),
        _raised(", _, _, %sinks {scale = 1.0, causal = true}", more=", %sinks: f32[4]"),
        exact=False,
    )


def test_spelled_out_with_a_constant_sink() -> None:
    """The softmax with one more in its sum."""
    assert_rewrites(
        RaiseAttention(),
        _spelled(
            """%z = full {value = 0.0, shape = (1, 4, 1, 1), dtype = f32}
            %s = expand %z {shape = (B, 4, S, 1)}
            %both = concat [%qk, %s] {axis = 3}
            %w = softmax %both {axis = 3}
            %d = slice %w {axis = 3, start = 0, stop = K}
            %y = matmul %d, %v3"""
        ),
        _raised(
            ", _, _, %s {scale = 1.0}",
            before="%s = full {value = 0.0, shape = (4,), dtype = f32}",
        ),
        exact=False,
    )


def test_spelled_out_with_the_scale_behind_the_mask() -> None:
    assert_rewrites(
        RaiseAttention(),
        _spelled(
            f"""{CAUSAL}
            %f = full {{value = -inf, dtype = f32}}
            %m = where %old, %qk, %f
            %c = full {{value = 0.5, dtype = f32}}
            %s = mul %c, %m
            %w = softmax %s {{axis = 3}}
            %y = matmul %w, %v3"""
        ),
        _raised(" {scale = 0.5, causal = true}"),
        exact=False,
    )


def test_spelled_out_over_batch_and_heads_in_one_dim() -> None:
    """bmm form: the mask is added to the scores with both dims apart."""
    arguments = "%q: f32[6, S, 8], %k: f32[6, K, 8], %v: f32[6, K, 8], %bias: f32[2, 1, S, K]"
    assert_rewrites(
        RaiseAttention(),
        f"""func @f({arguments}) {{
          %kt = permute %k {{dims = (0, 2, 1)}}
          %qk = matmul %q, %kt
          %s = reshape %qk {{shape = (2, 3, S, K)}}
          %m = add %s, %bias
          %w = softmax %m {{axis = 3}}
          %p = reshape %w {{shape = (6, S, K)}}
          %y = matmul %p, %v
          return %y
        }}""",
        f"""func @f({arguments}) {{
          %kt = permute %k {{dims = (0, 2, 1)}}
          %q4 = reshape %q {{shape = (2, 3, S, 8)}}
          %kt4 = reshape %kt {{shape = (2, 3, 8, K)}}
          %k4 = permute %kt4 {{dims = (0, 1, 3, 2)}}
          %v4 = reshape %v {{shape = (2, 3, K, 8)}}
          %a = attention %q4, %k4, %v4, %bias {{scale = 1.0}}
          %y = reshape %a {{shape = (6, S, 8)}}
          return %y
        }}""",
        exact=False,
    )


def test_spelled_out_with_a_bias_in_the_first_product() -> None:
    """``baddbmm`` adds position biases to the scaled scores in one call, as bloom does it."""
    arguments = "%q: f32[6, S, 8], %k: f32[6, K, 8], %v: f32[6, K, 8], %bias: f32[6, 1, K]"
    assert_rewrites(
        [RaiseAttention(), Dce()],
        f"""func @f({arguments}) {{
          %kt = permute %k {{dims = (0, 2, 1)}}
          %qk = aten.call [%bias, %q, %kt] {{target = "aten.baddbmm.default", args = ($0, $1, $2),
            kwargs = (("beta", 1.0), ("alpha", 0.25)), types = (f32[6, S, K],)}}
          %s = reshape %qk {{shape = (2, 3, S, K)}}
          %w = softmax %s {{axis = 3}}
          %p = reshape %w {{shape = (6, S, K)}}
          %y = matmul %p, %v
          return %y
        }}""",
        f"""func @f({arguments}) {{
          %kt = permute %k {{dims = (0, 2, 1)}}
          %q4 = reshape %q {{shape = (2, 3, S, 8)}}
          %kt4 = reshape %kt {{shape = (2, 3, 8, K)}}
          %k4 = permute %kt4 {{dims = (0, 1, 3, 2)}}
          %v4 = reshape %v {{shape = (2, 3, K, 8)}}
          %b4 = reshape %bias {{shape = (2, 3, 1, K)}}
          %a = attention %q4, %k4, %v4, %b4 {{scale = 0.25}}
          %y = reshape %a {{shape = (6, S, 8)}}
          return %y
        }}""",
        exact=False,
    )


def test_spelled_out_with_operands_widened_for_the_scores() -> None:
    """The op computes its scores in float32 anyhow."""
    narrow = "%q: bf16[2, 3, S, 8], %k: bf16[2, 3, K, 8], %v: bf16[2, 3, K, 8]"
    _assert_raises_within_the_rule(
        f"""func @f({narrow}) {{
          %qw = cast %q {{dtype = f32}}
          %kw = cast %k {{dtype = f32}}
          %kt = permute %kw {{dims = (0, 1, 3, 2)}}
          %qk = matmul %qw, %kt
          %w = softmax %qk {{axis = 3}}
          %n = cast %w {{dtype = bf16}}
          %y = matmul %n, %v
          return %y
        }}""",
        f"func @f({narrow}) {{ %y = attention %q, %k, %v {{scale = 1.0}} return %y }}",
    )


def test_no_raise_of_a_product_without_a_softmax() -> None:
    assert_no_rewrite(RaiseAttention(), _spelled("%y = matmul %qk, %v3"), None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("%w = softmax %qk {axis = 2}\n%y = matmul %w, %v3", "runs over dim 2"),
        (
            "%w = softmax %qk {axis = 3}\n%o = matmul %w, %v3\n%n = neg %w\n%y = matmul %n, %v3",
            "another use",
        ),
        (
            "%e = exp %qk\n%w = softmax %e {axis = 3}\n%y = matmul %w, %v3",
            "come from exp, not from a product",
        ),
        (
            """%f = full {value = -1.0, dtype = f32}
            %z = full {value = 0.0, dtype = f32}
            %l = gt %qk, %z
            %m = where %l, %qk, %f
            %w = softmax %m {axis = 3}
            %y = matmul %w, %v3""",
            "come from where, not from a product",
        ),
        (
            """%t = tanh %qk
            %f = full {value = -2.0, dtype = f32}
            %c = mul %t, %f
            %w = softmax %c {axis = 3}
            %y = matmul %w, %v3""",
            "through tanh, times -2.0",
        ),
    ],
)
def test_no_raise_of_near_misses(body: str, reason: str) -> None:
    assert_no_rewrite(RaiseAttention(), _spelled(body), reason)


def test_no_raise_where_an_appended_logit_keeps_its_weight() -> None:
    assert_no_rewrite(
        RaiseAttention(),
        """func @f(%q: f32[2, 3, S, 8], %kt: f32[2, 3, 8, K], %s: f32[2, 3, S, 1],
          %v: f32[2, 3, K + 1, 8]) {
          %qk = matmul %q, %kt
          %both = concat [%qk, %s] {axis = 3}
          %w = softmax %both {axis = 3}
          %y = matmul %w, %v
          return %y
        }""",
        "its weight is not dropped",
    )


# -- rows that see no key -------------------------------------------------------------------


def test_rows_without_a_key_keep_the_mean_of_a_finite_fill() -> None:
    """Left padding: the first row of a batch entry sees nothing, and eager gives the mean."""
    before = _spelled(
        f"""{CAUSAL}
        %p = reshape %pad {{shape = (B, 1, 1, K)}}
        %see = bitwise_and %old, %p
        %z = full {{value = 0.0, dtype = f32}}
        %f = full {{value = -3.4028234663852886e+38, dtype = f32}}
        %a = where %see, %z, %f
        %m = add %qk, %a
        %w = softmax %m {{axis = 3}}
        %y = matmul %w, %v3""",
        more=", %pad: bool[B, K]",
    )
    original, func = parse_func(before), parse_func(before)
    run = PassManager([RaiseAttention()], check=True).run(func)
    (site,) = run.sites()
    assert site.status == "fused"
    assert "a row may see no key" in site.details["mask"]
    pad = torch.tensor([[False, False, True, True, True], [True] * 5])
    arguments = make_arguments(original, {"B": 2, "S": 5, "K": 5}, given={"pad": pad})
    want, got = evaluate(original, arguments)[0], evaluate(func, arguments)[0]
    values = arguments[2]
    assert isinstance(values, torch.Tensor)
    torch.testing.assert_close(want[0, 0, 0], values[0, 0].mean(0))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1.3e-6)


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


# -- random masks ---------------------------------------------------------------------------


def _operands(program: MaskProgram) -> tuple[Value, Value, Value]:
    """q with four heads, k and v with the same, of the program's sizes."""

    def argument(name: str, length: Dim, width: int) -> Value:
        kind = TensorType(DType.F32, (program.batch, 4, length, width))
        return program.func.add_arg(kind, name)

    return (
        argument("q", program.queries, 8),
        argument("k", program.keys, 8),
        argument("v", program.keys, 6),
    )


def _run_both(program: MaskProgram, seed: int) -> tuple[Func, torch.Tensor, torch.Tensor]:
    """The program as it is and raised, on the same arguments."""
    raised = program.func.clone()
    PassManager([RaiseAttention(), Cse(), Dce()], check=True).run(raised)
    assert sum(isinstance(op, Attention) for op in raised.ops) == 1
    arguments = program.arguments(seed)
    (want,) = evaluate(program.func, arguments, binding=program.sizes)
    (got,) = evaluate(raised, arguments, binding=program.sizes)
    return raised, want, got


@pytest.mark.parametrize("seed", range(60))
def test_random_masks_of_sdpa(seed: int) -> None:
    program = MaskMaker(seed).program()
    q, k, v = _operands(program)
    y = program.func.append(Sdpa(q, k, v, program.mask, scale=0.5)).y
    program.func.set_returns([y])
    _, want, got = _run_both(program, seed)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1.3e-6)


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("seed", range(60))
def test_random_masks_of_a_spelled_out_softmax(seed: int, fill: float) -> None:
    """Rows without a key: NaN becomes zero where the fill is -inf, and a mean stays a mean."""
    program = MaskMaker(seed).program()
    func = program.func
    q, k, v = _operands(program)
    scores = func.append(Matmul(q, func.append(Permute(k, dims=(0, 1, 3, 2))).y)).y
    hidden = func.append(Full(value=fill, dtype=DType.F32)).y
    if seed % 2:
        zero = func.append(Full(value=0.0, dtype=DType.F32)).y
        mask = func.append(Where(program.mask, zero, hidden)).y
        scores = func.append(Add(scores, mask)).y
    else:
        scores = func.append(Where(program.mask, scores, hidden)).y
    weights = func.append(Softmax(scores, axis=3)).y
    func.set_returns([func.append(Matmul(weights, v)).y])
    _, want, got = _run_both(program, seed)
    if fill == -math.inf:
        want = want.nan_to_num(0.0)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1.3e-6)
