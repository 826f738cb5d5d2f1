"""The test helpers themselves: a wrong rewrite, in text or in numbers, does not get past them."""

from __future__ import annotations

import pytest
import torch

from fuseline.ir.core import Func
from fuseline.ir.ops.pointwise import Add, Mul, Sub
from fuseline.ir.text import parse_func
from fuseline.passes.rewrite import NoMatch, Replacement, Rewrite
from fuseline.testing import (
    assert_documented,
    assert_no_rewrite,
    assert_rewrites,
    canonical_text,
    documented_examples,
    make_arguments,
    make_binding,
)

BEFORE = """func @f(%x: f32[B, 4], %y: f32[B, 4]) {
  %z = sub %x, %y
  return %z
}"""
SWAPPED = BEFORE.replace("sub %x, %y", "sub %y, %x")


class SwapSub(Rewrite[Sub], root=Sub, pattern="swap"):
    """Swaps a subtraction's operands: wrong on purpose.

    Before:
        func @f(%a: f32[3], %b: f32[3]) {
          %c = sub %a, %b
          return %c
        }

    After:
        func @f(%a: f32[3], %b: f32[3]) {
          %c = sub %b, %a
          return %c
        }

    """

    def rewrite(self, op: Sub, func: Func) -> Replacement | NoMatch | None:
        if op.lhs.hint > op.rhs.hint:
            return NoMatch("already swapped")
        return {op.y: Sub(op.rhs, op.lhs).y}


class DoubleIsAdd(Rewrite[Mul], root=Mul):
    """``x * x`` becomes ``x + x``: wrong, and changes types of nothing."""

    def rewrite(self, op: Mul, func: Func) -> Replacement | NoMatch | None:
        return {op.y: Add(op.lhs, op.rhs).y}


def test_wrong_numbers_are_found() -> None:
    with pytest.raises(AssertionError, match="result 0"):
        assert_rewrites(SwapSub(), BEFORE, SWAPPED)


def test_wrong_text_is_shown_as_a_diff() -> None:
    with pytest.raises(AssertionError, match=r"-  %v.2 = sub %v, %v.1"):
        assert_rewrites(SwapSub(), BEFORE, BEFORE)


def test_an_unexpected_rewrite_is_found() -> None:
    with pytest.raises(AssertionError, match="the funcs differ"):
        assert_no_rewrite(SwapSub(), BEFORE, None)


def test_a_missing_reason_is_found() -> None:
    assert_no_rewrite(SwapSub(), SWAPPED, "already swapped")
    with pytest.raises(AssertionError, match="no reason contains"):
        assert_no_rewrite(SwapSub(), SWAPPED, "something else")
    with pytest.raises(AssertionError, match="misses were recorded"):
        assert_no_rewrite(SwapSub(), SWAPPED, None)


def test_a_pass_must_be_documented() -> None:
    with pytest.raises(AssertionError, match="no Before/After"):
        assert_documented(DoubleIsAdd)
    with pytest.raises(AssertionError, match="result 0"):
        assert_documented(SwapSub)
    assert len(documented_examples(SwapSub)) == 1


def test_names_do_not_count_but_order_does() -> None:
    renamed = BEFORE.replace("%x", "%p").replace("%z", "%q")
    assert canonical_text(parse_func(BEFORE)) == canonical_text(parse_func(renamed))
    assert canonical_text(parse_func(BEFORE)) != canonical_text(parse_func(SWAPPED))


def test_seeded_arguments_fit_what_they_index() -> None:
    func = parse_func("""func @f(%w: bf16[9, 4], %i: i64[B, S], %at: i64[2], %k: buffer<f32[5, S]>,
        %src: f32[2, S], %n: int<B>, %m: bool[B]) {
      %e = embedding %w, %i
      index_write %k, %at, %src {axis = 0}
      return %e
    }""")
    binding = make_binding(func)
    assert binding == {"B": 3, "S": 5}
    _, i, at, k, _, n, m = make_arguments(func, binding)
    assert isinstance(i, torch.Tensor)
    assert i.shape == (3, 5)
    assert 0 <= int(i.min()) <= int(i.max()) < 9
    assert isinstance(at, torch.Tensor)
    assert int(at[0]) != int(at[1]), "indices of a write must not collide"
    assert isinstance(k, torch.Tensor)
    assert bool((k != 0).all())
    assert n == 3
    assert isinstance(m, torch.Tensor)
    assert m.dtype == torch.bool
