"""merge-linears: which products are siblings, and why some are left alone."""

from __future__ import annotations

import pytest

from fuseline.passes.merge_linears import MergeLinears
from fuseline.testing import assert_no_rewrite, assert_rewrites

QKV = """func @f(%x: bf16[B, S, 8], %q: bf16[6, 8] = param "q", %k: bf16[3, 8] = param "k",
  %v: bf16[5, 8] = param "v", %bq: bf16[6] = param "bq", %bk: bf16[3] = param "bk",
  %bv: bf16[5] = param "bv") {"""


def test_merge_siblings_of_different_widths_with_biases() -> None:
    run = assert_rewrites(
        MergeLinears(),
        before=f"""{QKV}
          %a = linear %x, %q, %bq
          %b = linear %x, %k, %bk
          %c = linear %x, %v, %bv
          return %a, %b, %c
        }}""",
        after=f"""{QKV}
          %a, %b, %c = merged_linear %x, [%q, %k, %v], [%bq, %bk, %bv]
          return %a, %b, %c
        }}""",
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("merged_linear", "fused")
    assert site.details["weights"] == "q, k, v"


def test_merge_keeps_program_order_and_moves_up_to_the_first_sibling() -> None:
    assert_rewrites(
        MergeLinears(),
        before=f"""{QKV}
          %a = linear %x, %q
          %t = tanh %a
          %c = linear %x, %v
          %b = linear %x, %k
          return %b, %t, %c
        }}""",
        after=f"""{QKV}
          %a, %c, %b = merged_linear %x, [%q, %v, %k]
          %t = tanh %a
          return %b, %t, %c
        }}""",
    )


def test_merge_forms_one_group_with_biases_and_one_without() -> None:
    head = """func @f(%x: f32[B, 8], %a: f32[6, 8] = param "a", %b: f32[3, 8] = param "b",
      %c: f32[5, 8] = param "c", %d: f32[2, 8] = param "d",
      %ab: f32[6] = param "ab", %cb: f32[5] = param "cb") {"""
    run = assert_rewrites(
        MergeLinears(),
        before=f"""{head}
          %1a = linear %x, %a, %ab
          %1b = linear %x, %b
          %1c = linear %x, %c, %cb
          %1d = linear %x, %d
          return %1a, %1b, %1c, %1d
        }}""".replace("%1", "%y"),
        after=f"""{head}
          %1a, %1c = merged_linear %x, [%a, %c], [%ab, %cb]
          %1b, %1d = merged_linear %x, [%b, %d]
          return %1a, %1b, %1c, %1d
        }}""".replace("%1", "%y"),
    )
    assert [s.status for s in run.sites()] == ["fused", "fused"]


def test_merge_leaves_out_a_tied_weight_and_says_so() -> None:
    run = assert_rewrites(
        MergeLinears(),
        before=f"""{QKV}
          %a = linear %x, %q
          %b = linear %x, %k
          %c = linear %x, %v
          %t = tanh %k
          return %a, %b, %c, %t
        }}""",
        after=f"""{QKV}
          %a, %c = merged_linear %x, [%q, %v]
          %b = linear %x, %k
          %t = tanh %k
          return %a, %b, %c, %t
        }}""",
    )
    missed = [s for s in run.sites() if s.status == "missed"]
    assert [s.reason for s in missed] == ["weight k is read 2 times"]


def test_no_merge_of_a_weight_used_twice_gives_one_miss() -> None:
    run = assert_no_rewrite(
        MergeLinears(),
        """func @f(%x: f32[B, 8], %q: f32[6, 8] = param "q") {
          %a = linear %x, %q
          %b = linear %x, %q
          return %a, %b
        }""",
        "weight q is read 2 times",
    )
    assert len(run.sites()) == 1


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ('%k: f32[3, 8] = param "k" pinned "tied to embed"', "weight k is pinned: tied to embed"),
        ("%k: f32[3, 8]", "weight comes from argument k, not from a parameter"),
        ('%k: f32[3, 8] = buffer "k"', "weight comes from buffer k, not from a parameter"),
    ],
)
def test_no_merge_of_what_cannot_be_packed(second: str, reason: str) -> None:
    assert_no_rewrite(
        MergeLinears(),
        f"""func @f(%x: f32[B, 8], %q: f32[6, 8] = param "q", {second}) {{
          %a = linear %x, %q
          %b = linear %x, %k
          return %a, %b
        }}""",
        reason,
    )


def test_no_merge_of_a_computed_weight() -> None:
    assert_no_rewrite(
        MergeLinears(),
        """func @f(%x: f32[B, 8], %q: f32[6, 8] = param "q", %k: f32[3, 8] = param "k") {
          %t = tanh %k
          %a = linear %x, %q
          %b = linear %x, %t
          return %a, %b
        }""",
        "weight comes",
    )


def test_no_merge_of_one_biased_and_one_plain_product() -> None:
    assert_no_rewrite(
        MergeLinears(),
        """func @f(%x: f32[B, 8], %q: f32[6, 8] = param "q", %k: f32[3, 8] = param "k",
          %c: f32[3] = param "c") {
          %a = linear %x, %q
          %b = linear %x, %k, %c
          return %a, %b
        }""",
        "weight q of f32 with no bias has no sibling like it",
    )


def test_no_merge_and_no_site_without_a_sibling() -> None:
    assert_no_rewrite(
        MergeLinears(),
        """func @f(%x: f32[B, 8], %z: f32[B, 8], %q: f32[6, 8] = param "q",
          %k: f32[3, 8] = param "k") {
          %a = linear %x, %q
          %b = linear %z, %k
          return %a, %b
        }""",
        None,
    )
