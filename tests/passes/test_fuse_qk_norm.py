"""fuse-qk-norm and fuse-qk-rope: the spellings of real models, and what they refuse."""

from __future__ import annotations

import pytest

from fuseline.ir.text import parse_func
from fuseline.passes.fuse_qk_norm import FuseQkNorm
from fuseline.passes.fuse_qk_rope import FuseQkRope
from fuseline.passes.manager import PassManager
from fuseline.passes.record import Run
from fuseline.testing import assert_no_rewrite, assert_rewrites

BOTH = (FuseQkNorm(), FuseQkRope())

ARGS = """%q: T[2, S, 4, 6], %k: T[2, S, 2, 6], %v: T[2, 2, S, 6],
  %qw: T[6], %kw: T[6], %qb: T[6], %kb: T[6], %cos: T[1, S, 4], %sin: T[1, S, 4]"""
TABLES = """
  %c = reshape %cos {shape = (1, 1, S, 4)}
  %s = reshape %sin {shape = (1, 1, S, 4)}"""
ROPE = "{width = 4, start = 0}"
END = """
  %y = attention %qz, %kz, %v {scale = 0.4, causal = true}
  return %y
}"""


def head(dtype: str, args: str = ARGS) -> str:
    return f"func @f({args.replace('T[', dtype + '[')}) {{"


def pair(template: str) -> str:
    """The lines of q, then those of k: ``@`` is replaced by the name."""
    return "".join(template.replace("@", name) for name in "qk")


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("swap_first", [True, False])
def test_norm_per_head_then_rope(dtype: str, swap_first: bool) -> None:
    """qwen3 and gemma3: the norm before, glm4_moe also after, the transpose to heads first."""
    norm = 'rms_norm %{} , %@w {{eps = 1e-05, offset = 1.0, cast = "last"}}'
    swap = "permute %{} {{dims = (0, 2, 1, 3)}}"
    first, second = (swap, norm) if swap_first else (norm, swap)
    body = pair(
        f"\n%@n = {first.format('@')}\n%@t = {second.format('@n')}\n%@z = rope %@t, %c, %s {ROPE}"
    )
    run = assert_rewrites(
        BOTH,
        before=head(dtype) + TABLES + body + END,
        after=head(dtype)
        + f"""
        %qz, %kz = qk_norm_rope %q, %k, %qw, %kw, _, _, %cos, %sin {{
          eps = 1e-05, offset = 1.0, cast = "last", {ROPE[1:-1]}}}"""
        + END,
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("qk_norm", "fused")
    assert site.details["norm"] == "rms_norm over each head"


def test_the_site_is_where_the_rotation_is_and_not_where_the_attention_is() -> None:
    body = pair(f"""
      %@n = rms_norm %@, %@w AT "attn.norm" "model.py:4"
      %@t = permute %@n {{dims = (0, 2, 1, 3)}} AT "attn" "model.py:5"
      %@z = rope %@t, %c, %s {ROPE} AT "attn" "rotary.py:7" """).replace("AT", "@")
    end = END.replace("causal = true}", 'causal = true} @ "attn" "sdpa.py:9"')
    run = PassManager(BOTH).run(parse_func(head("bf16") + TABLES + body + end))
    (site,) = run.sites()
    assert site.where == "attn (rotary.py:7)"


def test_norm_after_rope() -> None:
    """hunyuan: rotated as heads first, then normalised."""
    body = pair(f"""
      %@t = permute %@ {{dims = (0, 2, 1, 3)}}
      %@r = rope %@t, %c, %s {ROPE}
      %@z = rms_norm %@r, %@w""")
    assert_rewrites(
        BOTH,
        before=head("bf16") + TABLES + body + END,
        after=head("bf16")
        + f"""
        %qz, %kz = qk_norm_rope %q, %k, %qw, %kw, _, _, %cos, %sin {{
          order = "rope_norm", {ROPE[1:-1]}}}"""
        + END,
    )


def test_norms_alone() -> None:
    """``rope=false`` leaves the rotations where they are, behind the norms or before them."""
    before = pair(f"""
      %@n = rms_norm %@, %@w
      %@t = permute %@n {{dims = (0, 2, 1, 3)}}
      %@z = rope %@t, %c, %s {ROPE}""")
    assert_rewrites(
        FuseQkNorm(rope=False),
        before=head("bf16") + TABLES + before + END,
        after=head("bf16")
        + TABLES
        + "\n %qt, %kt = qk_norm_rope %q, %k, %qw, %kw"
        + pair(f"\n %@z = rope %@t, %c, %s {ROPE}")
        + END,
    )
    behind = pair(f"\n %@r = rope %@, %c, %s {ROPE}\n %@z = rms_norm %@r, %@w")
    args = ARGS.replace("S, 4, 6]", "4, S, 6]").replace("%k: T[2, S, 2, 6]", "%k: T[2, 2, S, 6]")
    assert_rewrites(
        FuseQkNorm(rope=False),
        before=head("bf16", args) + TABLES + behind + END,
        after=head("bf16", args)
        + TABLES
        + pair(f"\n %@r = rope %@, %c, %s {ROPE}")
        + pair("\n %@p = permute %@r {dims = (0, 2, 1, 3)}")
        + "\n %qz, %kz = qk_norm_rope %qp, %kp, %qw, %kw"
        + END,
    )


def test_norm_without_rope_or_weight() -> None:
    body = pair("\n %@n = rms_norm %@ {eps = 0.001}\n %@z = permute %@n {dims = (0, 2, 1, 3)}")
    assert_rewrites(
        BOTH,
        before=head("f32") + body + END,
        after=head("f32") + "\n%qz, %kz = qk_norm_rope %q, %k {eps = 0.001}" + END,
    )


def test_layer_norm_with_bias_then_partial_interleaved_rope() -> None:
    """phi and persimmon have biases and rotate a part; cohere rotates pairs in place."""
    rope = '{width = 4, start = 2, style = "interleaved", sign = -1, round = false}'
    body = pair(f"""
      %@n = layer_norm %@, %@w, %@b
      %@t = permute %@n {{dims = (0, 2, 1, 3)}}
      %@z = rope %@t, %c, %s {rope}""")
    assert_rewrites(
        BOTH,
        before=head("bf16") + TABLES + body + END,
        after=head("bf16")
        + f"""
        %qz, %kz = qk_norm_rope %q, %k, %qw, %kw, %qb, %kb, %cos, %sin {{
          norm = "layer", eps = 1e-05, cast = "last", {rope[1:-1]}}}"""
        + END,
    )


def test_layer_norm_with_a_row_per_head() -> None:
    """cohere: the weight is ``[heads, head_dim]``."""
    args = "%q: T[2, S, 4, 6], %k: T[2, S, 2, 6], %v: T[2, 2, S, 6], %qw: T[4, 6], %kw: T[2, 6]"
    body = pair("\n %@n = layer_norm %@, %@w\n %@z = permute %@n {dims = (0, 2, 1, 3)}")
    assert_rewrites(
        BOTH,
        before=head("f32", args) + body + END,
        after=head("f32", args)
        + '\n%qz, %kz = qk_norm_rope %q, %k, %qw, %kw {norm = "layer", eps = 1e-05, cast = "last"}'
        + END,
    )


ROWS = """%q: T[B, S, 24], %k: T[B, S, 12], %v: T[B, 2, S, 6], %qw: T[24], %kw: T[12],
  %cos: T[S, 6], %sin: T[S, 6]"""


def test_norm_across_heads_of_unequal_widths() -> None:
    """olmo2 and minimax_m2: the norm runs over the projection, before the view to heads."""
    body = ""
    for name, heads in (("q", 4), ("k", 2)):
        body += f"""
          %{name}n = rms_norm %{name}, %{name}w {{cast = "last"}}
          %{name}h = reshape %{name}n {{shape = (B, S, {heads}, 6)}}
          %{name}t = permute %{name}h {{dims = (0, 2, 1, 3)}}
          %{name}z = rope %{name}t, %cos, %sin {{width = 6}}"""
    run = assert_rewrites(
        BOTH,
        before=head("bf16", ROWS) + body + END,
        after=head("bf16", ROWS)
        + """
        %qh = reshape %q {shape = (B, S, 4, 6)}
        %kh = reshape %k {shape = (B, S, 2, 6)}
        %c = reshape %cos {shape = (1, S, 6)}
        %s = reshape %sin {shape = (1, S, 6)}
        %qz, %kz = qk_norm_rope %qh, %kh, %qw, %kw, _, _, %c, %s {
          scope = "row", cast = "last", width = 6}"""
        + END,
    )
    assert run.sites()[0].details["norm"] == "rms_norm over each token"


def test_rope_over_flat_tokens() -> None:
    """Heads as ``[tokens, heads, head_dim]``, with a row of the tables for every token."""
    args = """%q: T[2, S, 24], %k: T[2, S, 12], %v: T[2, 2, S, 6], %cos: T[2, S, 6],
      %sin: T[2, S, 6]"""
    body = """
      %c = reshape %cos {shape = (2*S, 1, 6)}
      %s = reshape %sin {shape = (2*S, 1, 6)}"""
    for name, heads in (("q", 4), ("k", 2)):
        body += f"""
          %{name}f = reshape %{name} {{shape = (2*S, {heads}, 6)}}
          %{name}r = rope %{name}f, %c, %s {{width = 6}}
          %{name}h = reshape %{name}r {{shape = (2, S, {heads}, 6)}}
          %{name}z = permute %{name}h {{dims = (0, 2, 1, 3)}}"""
    body = body.replace("(2*S", "(<2*S>")
    run = assert_rewrites(
        BOTH,
        before=head("f32", args) + body + END,
        after=head("f32", args)
        + """
        %qh = reshape %q {shape = (2, S, 4, 6)}
        %kh = reshape %k {shape = (2, S, 2, 6)}
        %qz, %kz = qk_norm_rope %qh, %kh, _, _, _, _, %cos, %sin {norm = "none", width = 6}"""
        + END,
    )
    assert run.sites()[0].pattern == "rope"


def test_one_row_of_tables_for_all_tokens_is_expanded() -> None:
    args = "%q: T[2, S, 4, 6], %k: T[2, S, 2, 6], %v: T[2, 2, S, 6], %cos: T[1, 6], %sin: T[1, 6]"
    body = pair("""
      %@t = permute %@ {dims = (0, 2, 1, 3)}
      %@z = rope %@t, %cos, %sin {width = 6}""")
    assert_rewrites(
        BOTH,
        before=head("f32", args) + body + END,
        after=head("f32", args)
        + """
        %c1 = reshape %cos {shape = (1, 1, 6)}
        %c = expand %c1 {shape = (1, S, 6)}
        %s1 = reshape %sin {shape = (1, 1, 6)}
        %s = expand %s1 {shape = (1, S, 6)}
        %qz, %kz = qk_norm_rope %q, %k, _, _, _, _, %c, %s {norm = "none", width = 6}"""
        + END,
    )


def test_one_token_whose_transpose_was_written_as_a_reshape() -> None:
    """With one token, clean-up may spell the swap of heads and tokens as a reshape."""
    args = """%q: T[2, 1, 24], %k: T[2, 1, 12], %v: T[2, 2, 1, 6], %qw: T[6], %kw: T[6],
      %cos: T[1, 1, 6], %sin: T[1, 1, 6]"""
    body = """
      %c = reshape %cos {shape = (1, 1, 1, 6)}
      %s = reshape %sin {shape = (1, 1, 1, 6)}"""
    for name, heads in (("q", 4), ("k", 2)):
        body += f"""
          %{name}h = reshape %{name} {{shape = (2, {heads}, 1, 6)}}
          %{name}n = rms_norm %{name}h, %{name}w
          %{name}z = rope %{name}n, %c, %s {{width = 6}}"""
    assert_rewrites(
        BOTH,
        before=head("f32", args) + body + END,
        after=head("f32", args)
        + """
        %q4 = reshape %q {shape = (2, 1, 4, 6)}
        %k4 = reshape %k {shape = (2, 1, 2, 6)}
        %qz, %kz = qk_norm_rope %q4, %k4, %qw, %kw, _, _, %cos, %sin {width = 6}"""
        + END,
    )


def test_q_and_k_read_from_one_sliced_projection() -> None:
    args = "%p: T[2, S, 4, 18], %v: T[2, 4, S, 6], %qw: T[6], %kw: T[6]"
    body = """
      %q = slice %p {axis = 3, start = 0, stop = 6}
      %k = slice %p {axis = 3, start = 6, stop = 12}"""
    norm = pair("\n %@n = rms_norm %@, %@w\n %@z = permute %@n {dims = (0, 2, 1, 3)}")
    assert_rewrites(
        BOTH,
        before=head("f16", args) + body + norm + END,
        after=head("f16", args) + body + "\n%qz, %kz = qk_norm_rope %q, %k, %qw, %kw" + END,
    )


def test_keys_read_back_from_a_cache_are_found_by_their_write() -> None:
    args = ARGS + ", %at: i64[S], %cache: buffer<T[2, 2, 16, 6]>, %vs: T[2, 2, 16, 6]"
    end = """
      index_write %cache, %at, %kz {axis = 2}
      %ks = read %cache
      %y = attention %qz, %ks, %vs, _, %at {scale = 0.4, causal = true}
      return %y
    }"""
    close = head("f32", args).replace(") {", ") where S in 0..16 {")
    body = pair(f"""
      %@t = permute %@ {{dims = (0, 2, 1, 3)}}
      %@z = rope %@t, %c, %s {ROPE}""")
    fused = f"""
      %qz, %kz = qk_norm_rope %q, %k, _, _, _, _, %cos, %sin {{norm = "none", {ROPE[1:-1]}}}"""
    assert_rewrites(BOTH, before=close + TABLES + body + end, after=close + fused + end)


@pytest.mark.parametrize("grown", [
    "concat [%past, %kz] {axis = 2}",
    "index_copy %past, %at, %kz {axis = 2}",
    "slice_scatter %past, %kz {axis = 2, start = 0, stop = S}",
])  # fmt: skip
def test_keys_put_behind_or_into_a_tensor(grown: str) -> None:
    """A cache that grows, or one whose writes could not be brought back in place."""
    args = ARGS + ", %at: i64[S], %past: T[2, 2, 16, 6], %vs: T[2, 2, TOTAL, 6]"
    args = args.replace("TOTAL", "S + 16" if grown.startswith("concat") else "16")
    end = f"""
      %ks = {grown}
      %y = attention %qz, %ks, %vs, _, %at {{scale = 0.4, causal = true}}
      return %y, %ks
    }}"""
    close = head("f32", args).replace(") {", ") where S in 0..16 {")
    body = pair(f"""
      %@t = permute %@ {{dims = (0, 2, 1, 3)}}
      %@z = rope %@t, %c, %s {ROPE}""")
    fused = f"""
      %qz, %kz = qk_norm_rope %q, %k, _, _, _, _, %cos, %sin {{norm = "none", {ROPE[1:-1]}}}"""
    assert_rewrites(BOTH, before=close + TABLES + body + end, after=close + fused + end)


def missed(body: str, reason: str, args: str = ARGS, end: str = END) -> Run:
    run = assert_no_rewrite(BOTH, head("f32", args) + TABLES + body + end, reason)
    assert [s.status for s in run.sites() if s.pattern in ("qk_norm", "rope")] == ["missed"]
    return run


SWAPS = pair("\n%@t = permute %@ {dims = (0, 2, 1, 3)}")


@pytest.mark.parametrize(
    ("q", "k", "reason"),
    [
        (f"rope %qt, %c, %s {ROPE}", "tanh %kt", "q is rotated, k is plain (from tanh)"),
        ("rms_norm %qt, %qw", "neg %kt", "q is normalised, k is plain (from neg)"),
        ("rms_norm %qt, %qw", f"rope %kt, %c, %s {ROPE}", "q is normalised, k is rotated"),
        (
            "rms_norm %qt, %qw {eps = 1e-06}",
            "rms_norm %kt, %kw {eps = 1e-05}",
            "rms_norm of q has eps 1e-06, of k 1e-05",
        ),
        (
            "rms_norm %qt, %qw",
            "rms_norm %kt",
            "the norm of q has a weight f32[6], that of k has none",
        ),
        (
            f"rope %qt, %c, %s {ROPE}",
            f"rope %kt, %s, %c {ROPE}",
            "q and k are rotated by different tables (cos)",
        ),
    ],
)
def test_no_fuse_where_q_and_k_differ(q: str, k: str, reason: str) -> None:
    missed(f"{SWAPS}\n%qz = {q}\n%kz = {k}", reason)


def test_no_fuse_where_others_read_what_lies_between() -> None:
    body = f"{SWAPS}{pair('%@n = rms_norm %@t, %@w' + chr(10))}" + pair(
        f"\n%@z = rope %@n, %c, %s {ROPE}"
    )
    end = END.replace("return %y", "return %y, %kn")
    missed(body, "the result of rms_norm, on the way to k, is read by others too", end=end)


def test_no_fuse_of_a_norm_that_is_neither_per_head_nor_per_token() -> None:
    args = ARGS.replace("%qw: T[6], %kw: T[6]", "%qw: T[3], %kw: T[3]")
    body = pair("""
      %@2 = reshape %@ {shape = (2, S, HEADS_@, 2, 3)}
      %@n = rms_norm %@2, %@w
      %@h = reshape %@n {shape = (2, S, HEADS_@, 6)}
      %@z = permute %@h {dims = (0, 2, 1, 3)}""")
    body = body.replace("HEADS_q", "4").replace("HEADS_k", "2")
    missed(body, "the norm of q runs over 3 elements, which is neither a head of 6", args)


def test_no_fuse_of_a_norm_across_heads_after_the_rotation() -> None:
    body = ""
    for name, heads in (("q", 4), ("k", 2)):
        body += f"""
          %{name}r = rope %{name}, %cb, %sb {ROPE}
          %{name}f = reshape %{name}r {{shape = (2, S, {heads * 6})}}
          %{name}n = rms_norm %{name}f
          %{name}h = reshape %{name}n {{shape = (2, S, {heads}, 6)}}
          %{name}z = permute %{name}h {{dims = (0, 2, 1, 3)}}"""
    tables = "".join(f"\n%{t[0]}b = reshape %{t} {{shape = (1, S, 1, 4)}}" for t in ("cos", "sin"))
    missed(tables + body, "the norm of q runs over all heads after the rotation")


def test_no_fuse_of_tables_that_differ_by_head() -> None:
    args = ARGS.replace("%cos: T[1, S, 4]", "%cos: T[1, S, 4], %ch: T[1, 2, S, 4]")
    args = args.replace("%q: T[2, S, 4, 6]", "%q: T[2, S, 2, 6]")
    body = SWAPS + pair(f"\n%@z = rope %@t, %ch, %s {ROPE}")
    missed(body, "the tables f32[1, 2, S, 4] differ by head", args)


def test_no_fuse_of_k_made_from_q() -> None:
    args = ARGS.replace("%k: T[2, S, 2, 6]", "%k: T[2, S, 4, 6]").replace("2, 2, S", "2, 4, S")
    body = """
      %qz = rms_norm %qt, %qw
      %kq = add %kt, %qz
      %kz = rms_norm %kq, %kw"""
    missed(SWAPS + body, "q or k is computed from the other one", args)


def test_no_fuse_of_tokens_of_another_sequence() -> None:
    """Cross attention: the keys come from an encoder."""
    args = ARGS.replace(
        "%k: T[2, S, 2, 6], %v: T[2, 2, S, 6]", "%k: T[2, E, 2, 6], %v: T[2, 2, E, 6]"
    )
    body = SWAPS + pair("\n%@z = rms_norm %@t, %@w")
    missed(body, "not the same tokens", args, END.replace(", causal = true", ""))


def test_no_fuse_of_a_norm_that_changes_the_type() -> None:
    args = ARGS.replace("T[", "bf16[").replace(
        "%qw: bf16[6], %kw: bf16[6]", "%qw: f32[6], %kw: f32[6]"
    )
    args = args.replace("%v: bf16", "%v: f32")
    body = SWAPS + pair("\n%@z = rms_norm %@t, %@w")
    missed(body, "rms_norm turns q from bf16 into f32", args)


def test_no_fuse_of_a_norm_module_for_each_head() -> None:
    """stablelm: the heads are split, normed by a module each, and concatenated."""
    body = ""
    for name in "qk":
        for head in range(2):
            body += f"""
              %{name}{head} = slice %{name}t {{axis = 1, start = {head}, stop = {head + 1}}}
              %{name}n{head} = layer_norm %{name}{head}, %qw"""
        body += f"\n%{name}z = concat [%{name}n0, %{name}n1] {{axis = 1}}"
    args = ARGS.replace("%q: T[2, S, 4, 6]", "%q: T[2, S, 2, 6]")
    reason = "each of the 2 heads of q and each of the 2 heads of k has a norm of its own"
    missed(SWAPS + body, reason, args)


def test_no_site_where_neither_q_nor_k_is_touched() -> None:
    swaps = pair("\n%@z = permute %@ {dims = (0, 2, 1, 3)}")
    assert_no_rewrite(BOTH, head("f32") + swaps + END, None)


ROTATED = """%q: f32[2, 4, S, 6], %k: f32[2, 2, S, 6], %qw: f32[6], %kw: f32[6],
  %cos: f32[1, S, 4], %sin: f32[1, S, 4]"""
NORMED_AND_ROTATED = pair(f"\n%@n = rms_norm %@, %@w\n%@z = rope %@n, %c, %s {ROPE}")


def test_pair_whose_attention_is_no_op_of_the_func() -> None:
    """The part of a block before a graph break, or before an attention operator of somebody's."""
    end = "\n return %qz, %kz\n}"
    run = assert_rewrites(
        BOTH,
        before=head("f32", ROTATED) + TABLES + NORMED_AND_ROTATED + end,
        after=head("f32", ROTATED)
        + f"""
        %qp = permute %q {{dims = (0, 2, 1, 3)}}
        %kp = permute %k {{dims = (0, 2, 1, 3)}}
        %qz, %kz = qk_norm_rope %qp, %kp, %qw, %kw, _, _, %cos, %sin {ROPE}"""
        + end,
    )
    assert [(s.pattern, s.status) for s in run.sites()] == [("qk_norm", "fused")]


@pytest.mark.parametrize("norm_last", [False, True])
def test_pair_with_tokens_before_heads(norm_last: bool) -> None:
    """Flash attention takes ``[B, S, H, D]``."""
    body = f"%@n = rms_norm %@, %@w\n%@z = rope %@n, %c, %s {ROPE}"
    if norm_last:
        body = f"%@n = rope %@, %c, %s {ROPE}\n%@z = rms_norm %@n, %@w"
    body = pair(f"\n{body}")
    tables = TABLES.replace("(1, 1, S, 4)", "(1, S, 1, 4)")
    end = "\n return %qz, %kz\n}"
    order = 'order = "rope_norm", ' if norm_last else ""
    assert_rewrites(
        BOTH,
        before=head("bf16") + tables + body + end,
        after=head("bf16")
        + f"""
        %qz, %kz = qk_norm_rope %q, %k, %qw, %kw, _, _, %cos, %sin {{
          out = "bshd", {order}{ROPE[1:-1]}}}"""
        + end,
    )


def test_pairs_of_several_layers_by_what_they_come_from() -> None:
    """All layers share the tables of the rotation."""
    args = """%x: f32[1, S, 12], %y: f32[1, S, 12], %w: f32[6], %cos: f32[S, 6], %sin: f32[S, 6]"""
    body = ""
    for layer in "xy":
        for part, start in (("q", 0), ("k", 6)):
            body += f"""
              %{layer}{part} = slice %{layer} {{axis = 2, start = {start}, stop = {start + 6}}}
              %{layer}{part}h = reshape %{layer}{part} {{shape = (1, 1, S, 6)}}
              %{layer}{part}n = rms_norm %{layer}{part}h, %w
              %{layer}{part}z = rope %{layer}{part}n, %cos, %sin {{width = 6}}"""
    after = ""
    for layer in "xy":
        after += f"""
          %{layer}q = slice %{layer} {{axis = 2, start = 0, stop = 6}}
          %{layer}k = slice %{layer} {{axis = 2, start = 6, stop = 12}}
          %{layer}qh = reshape %{layer}q {{shape = (1, S, 1, 6)}}
          %{layer}kh = reshape %{layer}k {{shape = (1, S, 1, 6)}}
          %{layer}c = reshape %cos {{shape = (1, S, 6)}}
          %{layer}s = reshape %sin {{shape = (1, S, 6)}}
          %{layer}qz, %{layer}kz = qk_norm_rope %{layer}qh, %{layer}kh, %w, %w, _, _, %{layer}c,
            %{layer}s {{width = 6}}"""
    end = "\n return %xqz, %xkz, %yqz, %ykz\n}"
    assert_rewrites(
        BOTH, before=head("f32", args) + body + end, after=head("f32", args) + after + end
    )


def test_no_pair_of_rotations_that_an_attention_reads_with_others() -> None:
    """MLA: the rotated parts are concatenated to others first, and are not all of q and k."""
    body = """
      %qz = rope %q, %c, %s {width = 4, start = 0}
      %kz = rope %k, %c, %s {width = 4, start = 0}
      %qj = concat [%qz, %q] {axis = 3}
      %kj = concat [%kz, %k] {axis = 3}
      %y = attention %qj, %kj, %v {scale = 0.4, causal = true}
      return %y
    }"""
    args = ROTATED + ", %v: f32[2, 2, S, 6]"
    run = assert_no_rewrite(FuseQkNorm(), head("f32", args) + TABLES + body, None)
    assert not run.sites()


def test_no_pair_of_rotations_of_which_one_is_made_from_the_other() -> None:
    """Layers whose attention is unknown share the tables of the rotation."""
    text = """func @f(%x: f32[1, 5, 2, 8], %c: f32[5, 1, 8], %s: f32[5, 1, 8]) {
      %q = rope %x, %c, %s {width = 8}
      %n = mul %q, %x
      %r = rope %n, %c, %s {width = 8}
      return %q, %r
    }"""
    for rewrite in BOTH:
        assert_no_rewrite(rewrite, text, None)
