"""raise-attention: products around a softmax, with what models put between them."""

from __future__ import annotations

import re

import pytest
import torch

from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func
from fuseline.passes.dce import Dce
from fuseline.passes.manager import PassManager
from fuseline.passes.raise_attention import RaiseAttention
from fuseline.testing import assert_no_rewrite, assert_rewrites, canonical_text, make_arguments


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
