"""raise-latent-attention: keys and values that one latent expands to, in all spellings."""

from __future__ import annotations

import pytest

from fuseline.passes.raise_attention import RaiseAttention
from fuseline.passes.raise_latent_attention import RaiseLatentAttention
from fuseline.testing import assert_no_rewrite, assert_rewrites

PASS = RaiseLatentAttention()

ARGS = """%q: T[B, 4, S, 9], %c: T[B, 1, T, 14], %r: T[B, 1, T, 4],
  %w: T[48, 14] = param "kv_b" """


def func(body: str, args: str = ARGS, dtype: str = "f32") -> str:
    return f"func @f({args.replace(': T[', f': {dtype}[')}) {{{body}\n}}"


EXPAND = """
  %p = linear %c, %w
  %heads = reshape %p {shape = (B, T, 4, 12)}
  %t = permute %heads {dims = (0, 2, 1, 3)}
  %n = slice %t {axis = 3, stop = 5}
  %v = slice %t {axis = 3, start = 5, stop = 12}
  %each = expand %r {shape = (B, 4, T, 4)}"""
KEYS = """
  %k = concat [%n, %each] {axis = 3}"""
END = """
  %y = attention %q, %k, %v {scale = 0.4, causal = true}
  return %y"""
AFTER = """
  %y = latent_attention %q, %c, %w, %r {key = 5, value = 7, scale = 0.4, causal = true}
  return %y"""


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_key_and_value_rows_side_by_side(dtype: str) -> None:
    run = assert_rewrites(
        PASS, before=func(EXPAND + KEYS + END, dtype=dtype), after=func(AFTER, dtype=dtype)
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("mla", "fused")
    each = 4 if dtype == "f32" else 2
    assert site.details == {
        "q": "not from one product",
        "heads": "4 over 4",
        "kv rank": "14",
        "widths": "key 5 + 4, value 7",
        "cache": "none",
        "cache bytes per token": f"{18 * each} latent, {64 * each} expanded",
    }


def test_a_shared_part_that_is_put_together_of_two() -> None:
    """longcat_flash: the halves of a rotation that is none of those known."""
    halves = """
      %a = slice %r {axis = 3, stop = 1}
      %b = slice %r {axis = 3, start = 1, stop = 4}
      %z = concat [%b, %a] {axis = 3}"""
    before = halves + EXPAND.replace("expand %r", "expand %z") + KEYS + END
    after = halves + AFTER.replace("%w, %r", "%w, %z")
    assert_rewrites(PASS, before=func(before), after=func(after))


def test_heads_swapped_after_the_parts_are_joined() -> None:
    """DeepSeek's first release: parts by token, joined, then one transpose for all."""
    before = """
      %p = linear %c, %w
      %heads = reshape %p {shape = (B, T, 4, 12)}
      %n = slice %heads {axis = 3, stop = 5}
      %vt = slice %heads {axis = 3, start = 5, stop = 12}
      %rt = reshape %r {shape = (B, T, 1, 4)}
      %each = expand %rt {shape = (B, T, 4, 4)}
      %kt = concat [%n, %each] {axis = 3}
      %k = permute %kt {dims = (0, 2, 1, 3)}
      %v = permute %vt {dims = (0, 2, 1, 3)}"""
    assert_rewrites(PASS, before=func(before + END), after=func(AFTER))


def test_common_part_first() -> None:
    keys = "\n %k = concat [%each, %n] {axis = 3}"
    after = """
      %a = slice %q {axis = 3, start = 4, stop = 9}
      %b = slice %q {axis = 3, stop = 4}
      %qq = concat [%a, %b] {axis = 3}
      %y = latent_attention %qq, %c, %w, %r {key = 5, value = 7, scale = 0.4, causal = true}
      return %y"""
    assert_rewrites(PASS, before=func(EXPAND + keys + END), after=func(after), exact=False)


def test_no_common_part() -> None:
    """All of a key may be expanded: a latent that carries no positions."""
    args = '%q: T[B, 4, S, 5], %c: T[B, T, 14], %w: T[48, 14] = param "kv_b"'
    before = """
      %p = linear %c, %w
      %heads = reshape %p {shape = (B, T, 4, 12)}
      %t = permute %heads {dims = (0, 2, 1, 3)}
      %k = slice %t {axis = 3, stop = 5}
      %v = slice %t {axis = 3, start = 5, stop = 12}"""
    after = """
      %l = reshape %c {shape = (B, 1, T, 14)}
      %y = latent_attention %q, %l, %w {key = 5, value = 7, scale = 0.4, causal = true}
      return %y"""
    assert_rewrites(PASS, before=func(before + END, args), after=func(after, args))


TWO = """%q: T[B, 4, S, 9], %c: T[B, 1, T, 14], %r: T[B, 1, T, 4],
  %wk: T[20, 14] = param "k_b", %wv: T[28, 14] = param "v_b" """


def test_a_product_each_for_keys_and_values() -> None:
    before = """
      %pk = linear %c, %wk
      %pv = linear %c, %wv
      %hk = reshape %pk {shape = (B, T, 4, 5)}
      %hv = reshape %pv {shape = (B, T, 4, 7)}
      %n = permute %hk {dims = (0, 2, 1, 3)}
      %v = permute %hv {dims = (0, 2, 1, 3)}
      %each = expand %r {shape = (B, 4, T, 4)}"""
    after = """
      %y = latent_attention %q, %c, %wk, %r, _, _, _, %wv {
        key = 5, value = 7, scale = 0.4, causal = true}
      return %y"""
    assert_rewrites(PASS, before=func(before + KEYS + END, TWO), after=func(after, TWO))


@pytest.mark.parametrize("groups", [1, 2])
def test_fewer_key_heads_than_queries(groups: int) -> None:
    args = f"""%q: T[B, 4, S, 9], %c: T[B, 1, T, 6], %r: T[B, 1, T, 4],
      %w: T[{12 * groups}, 6] = param "kv_b" """
    before = f"""
      %p = linear %c, %w
      %heads = reshape %p {{shape = (B, T, {groups}, 12)}}
      %t = permute %heads {{dims = (0, 2, 1, 3)}}
      %n = slice %t {{axis = 3, stop = 5}}
      %v = slice %t {{axis = 3, start = 5, stop = 12}}
      %each = expand %r {{shape = (B, {groups}, T, 4)}}"""
    run = assert_rewrites(PASS, before=func(before + KEYS + END, args), after=func(AFTER, args))
    assert run.sites()[0].details["heads"] == f"4 over {groups}"


def test_cached_latent_and_the_mask_of_another_op() -> None:
    """What selects keys by a mask (an indexer) is kept, as it is the same for a latent."""
    args = """%q: f32[2, 4, S, 9], %c: buffer<f32[2, 1, 16, 14]>, %r: buffer<f32[2, 1, 16, 4]>,
      %at: i64[S], %m: bool[2, 1, S, 16], %w: f32[48, 14] = param "kv_b" """
    body = EXPAND.replace("%c, %w", "%cr, %w").replace("expand %r", "expand %rr")
    body = body.replace("B,", "2,").replace("T,", "16,")
    reads = "\n %cr = read %c\n %rr = read %r"
    tail = ", %m, %at {scale = 0.4, causal = true}\n return %y"
    run = assert_rewrites(
        PASS,
        before=func(reads + body + KEYS + "\n %y = attention %q, %k, %v" + tail, args),
        after=func(
            reads
            + "\n %y = latent_attention %q, %cr, %w, %rr, %m, %at"
            + tail.removeprefix(", %m, %at").replace("{", "{key = 5, value = 7, "),
            args,
        ),
    )
    assert run.sites()[0].details["cache"] == "latent, in c"


@pytest.mark.parametrize("count", [1, 3])
def test_some_of_the_tokens(count: int) -> None:
    """A prompt that attends to the part of a new cache that it has filled."""
    part = f"{{axis = 2, start = 2, stop = {2 + count}}}"
    body = (
        EXPAND + KEYS.replace("%k =", "%kk =") + f"\n %k = slice %kk {part}\n %vv = slice %v {part}"
    )
    after = f"""
      %some = slice %c {part}
      %also = slice %r {part}
      %y = latent_attention %q, %some, %w, %also {{key = 5, value = 7, scale = 0.4, causal = true}}
      return %y"""
    args = ARGS.replace("T,", "16,")
    before = body.replace("T,", "16,") + END.replace("%v ", "%vv ")
    assert_rewrites(PASS, before=func(before, args), after=func(after, args), exact=False)


def test_from_torch_attention() -> None:
    sdpa = "\n %y = sdpa %q, %k, %v {scale = 0.4}\n return %y"
    run = assert_rewrites(
        (RaiseAttention(), PASS),
        before=func(EXPAND + KEYS + sdpa),
        after=func(AFTER.replace(", causal = true", "")),
        exact=False,
    )
    (site,) = run.sites()
    assert site.details["swallowed"] == "attention"


# -- where nothing may change ---------------------------------------------------------------


def refused(before: str, reason: str | None) -> None:
    assert_no_rewrite(PASS, before, reason)


def test_no_bias() -> None:
    args = ARGS + ', %bias: T[48] = param "b"'
    body = EXPAND.replace("%c, %w", "%c, %w, %bias") + KEYS + END
    refused(func(body, args), "the expansion of the latent has a bias b")


CROSS = """%q: f32[B, 4, S, 5], %e: f32[B, T, 14], %w: f32[48, 14] = param "kv",
  %b: f32[48], %a: f32[14, 20] = param "kv_a", %x: f32[B, T, 20], %n: f32[14]"""


def cross(states: str) -> str:
    """Keys and values of one product with a bias, all of them expanded."""
    return f"""
      {states}
      %p = linear %c, %w, %b
      %heads = reshape %p {{shape = (B, T, 4, 12)}}
      %t = permute %heads {{dims = (0, 2, 1, 3)}}
      %k = slice %t {{axis = 3, stop = 5}}
      %v = slice %t {{axis = 3, start = 5, stop = 12}}""" + END.replace(", causal = true", "")


@pytest.mark.parametrize(
    "states",
    [
        "%c = rms_norm %e, %n",
        "%o = linear %e, %a.square\n %s = add %e, %o\n %c = layer_norm %s, %n, %n",
    ],
)
def test_no_word_about_attention_to_the_states_of_an_encoder(states: str) -> None:
    """Narrower than keys and values together, as of any encoder with wide heads: no latent."""
    args = CROSS + (', %a.square: f32[14, 14] = param "o"' if "square" in states else "")
    refused(func(cross(states), args), None)


def test_a_bias_is_a_reason_where_a_product_made_the_latent() -> None:
    states = "%d = linear %x, %a\n %c = rms_norm %d, %n"
    refused(func(cross(states), CROSS), "the expansion of the latent has a bias b")


def test_no_reader_of_the_expanded_keys() -> None:
    refused(
        func(EXPAND + KEYS + END + ", %k"),
        "the expanded keys and values (the result of concat) are returned",
    )
    other = EXPAND + KEYS + "\n %z = neg %n" + END + ", %z"
    refused(func(other), "the expanded keys and values are read by neg too")


def test_no_weight_that_is_computed() -> None:
    body = "\n %ww = neg %w" + EXPAND.replace("%c, %w", "%c, %ww") + KEYS + END
    refused(func(body), "the weight that expands the latent comes from neg")


def test_no_values_before_keys() -> None:
    body = EXPAND.replace("stop = 5}", "start = 7, stop = 12}")
    body = body.replace("start = 5, stop = 12", "stop = 7") + KEYS + END
    refused(
        func(body),
        "head h takes its 5 key rows from 12 * h + 7 on and its 7 value rows from 12 * h + 0 on: "
        "not side by side, keys first",
    )


def test_no_key_of_three_parts() -> None:
    args = ARGS.replace("[B, 4, S, 9]", "[B, 4, S, 13]")
    body = EXPAND + "\n %k = concat [%each, %n, %each] {axis = 3}" + END
    refused(
        func(body, args),
        "a key is made of 3 parts: 1 expanded from a latent, 2 common to all heads",
    )


def test_no_selected_tokens() -> None:
    args = ARGS + ", %i: i64[T]"
    select = "\n %s = index_select %p, %i {axis = 2}\n %heads = reshape %s"
    body = EXPAND.replace("\n  %heads = reshape %p", select) + KEYS + END
    refused(
        func(body, args),
        "the tokens of v are selected by index_select from what a linear makes",
    )


def test_no_site_for_ordinary_attention() -> None:
    """Projections of x are no latent: another product reads x, or x is as wide as they are."""
    args = """%x: f32[B, S, 14], %wq: f32[20, 14] = param "q", %w: f32[48, 14] = param "kv" """
    body = """
      %pq = linear %x, %wq
      %hq = reshape %pq {shape = (B, S, 4, 5)}
      %q = permute %hq {dims = (0, 2, 1, 3)}
      %p = linear %x, %w
      %heads = reshape %p {shape = (B, S, 4, 12)}
      %t = permute %heads {dims = (0, 2, 1, 3)}
      %k = slice %t {axis = 3, stop = 5}
      %v = slice %t {axis = 3, start = 5, stop = 12}"""
    refused(func(body + END, args), None)
    refused(func(EXPAND + KEYS + END).replace(", 14]", ", 48]"), None)
