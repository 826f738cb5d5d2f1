"""Equal ops become one: by operands, by attributes with their types, and not across writes."""

from __future__ import annotations

from fuseline.passes.cse import Cse
from fuseline.testing import assert_no_rewrite, assert_rewrites


def test_equal_chains_become_one() -> None:
    assert_rewrites(
        Cse(),
        """func @f(%x: f32[B, 4]) {
          %a = full {value = 2.0, dtype = f32}
          %b = full {value = 2.0, dtype = f32}
          %c = mul %x, %a
          %d = mul %x, %b
          %e = add %c, %d
          return %e, %d
        }""",
        """func @f(%x: f32[B, 4]) {
          %a = full {value = 2.0, dtype = f32}
          %c = mul %x, %a
          %e = add %c, %c
          return %e, %c
        }""",
    )


def test_no_merging_of_constants_that_only_compare_equal() -> None:
    assert_no_rewrite(
        Cse(),
        """func @f(%x: f32[B, 4]) {
          %a = full {value = 1, dtype = f32}
          %b = full {value = 1.0, dtype = f32}
          %c = full {value = true, dtype = f32}
          %d = full {value = 0.0, dtype = f32}
          %e = full {value = -0.0, dtype = f32}
          return %a, %b, %c, %d, %e
        }""",
        None,
    )


def test_no_merging_of_swapped_operands_or_of_calls() -> None:
    assert_no_rewrite(
        Cse(),
        """func @f(%x: f32[4], %z: f32[4]) {
          %a = sub %x, %z
          %b = sub %z, %x
          %c = aten.call [%x] {target = "aten.rand_like.default", args = ($0,), types = (f32[4],)}
          %d = aten.call [%x] {target = "aten.rand_like.default", args = ($0,), types = (f32[4],)}
          return %a, %b
        }""",
        None,
    )


def test_no_merging_of_reads_across_a_write() -> None:
    assert_no_rewrite(
        Cse(),
        """func @f(%x: f32[2, 4], %i: i64[2], %k: buffer<f32[5, 4]>) {
          %a = read %k
          index_write %k, %i, %x {axis = 0}
          %b = read %k
          slice_write %k, %x {axis = 0, stop = 2}
          %c = read %k
          return %a, %b, %c
        }""",
        None,
    )
