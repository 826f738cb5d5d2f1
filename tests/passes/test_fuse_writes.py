"""fuse-writes: the counters of all layers in one kernel, and what must stay as it is."""

from __future__ import annotations

from fuseline.ir.text import parse_func
from fuseline.passes.fuse_pointwise import FusePointwise
from fuseline.passes.fuse_writes import FuseWrites
from fuseline.passes.plan import ProtectReads
from fuseline.passes.rewrite import Pass
from fuseline.testing import assert_no_rewrite, assert_rewrites, run_passes

HEAD = "func @f(%a: buffer<i64[]>, %b: buffer<i64[]>, %s: i64[], %t: i64[3]) {"
READS = "\n%x = read %a\n%y = read %b"
SUMS = "\n%p = add %x, %s\n%q = add %y, %s"
WRITES = "\nwrite %a, %p\nwrite %b, %q"
END = "\nreturn }"
BODY = """{body = func @region(%x: i64[], %s: i64[], %y: i64[]) {
  %p = add %x, %s
  %q = add %y, %s
  return %p, %q
}}"""
FUSED = "\npointwise_write [%a, %b], [%x, %s, %y] " + BODY


def _names(text: str, *passes: Pass) -> list[str]:
    """The ops that passes make of a func."""
    func = parse_func(text)
    run_passes(passes, func)
    return [op.name for op in func.ops]


def test_regions_and_single_ops_are_joined_and_read_a_common_operand_once() -> None:
    assert_rewrites(FuseWrites(), HEAD + READS + SUMS + WRITES + END, HEAD + READS + FUSED + END)
    region = """
      %p = pointwise [%x, %s] {body = func @region(%x: i64[], %s: i64[]) {
        %p = add %x, %s
        return %p
      }}
      %q = add %y, %s"""
    assert_rewrites(FuseWrites(), HEAD + READS + region + WRITES + END, HEAD + READS + FUSED + END)


def test_a_counter_that_is_read_before_its_write_needs_no_copy() -> None:
    """A step looks where to write first, and counts then; both in the same memory."""
    at = "\n%at = add %t, %x"
    text = HEAD + READS + at + SUMS + WRITES + "\nreturn %at }"
    found = _names(text, FusePointwise(), FuseWrites(), ProtectReads())
    assert found == ["read", "read", "add", "pointwise_write"]


def test_what_is_read_after_the_write_is_copied_before_it() -> None:
    """The old count is returned, or computed with behind the write."""
    text = HEAD + READS + SUMS + WRITES + "\n%z = add %t, %x\nreturn %z }"
    found = _names(text, FuseWrites(), ProtectReads())
    assert found == ["read", "copy", "read", "pointwise_write", "add"]


def test_writes_stop_where_a_buffer_is_read_in_between() -> None:
    """The first write cannot move behind a read of what it wrote."""
    between = "\nwrite %a, %p\n%z = read %a\nwrite %b, %q\nreturn %z }"
    names = _names(HEAD + READS + SUMS + between, FuseWrites())
    assert names == ["read", "read", "pointwise_write", "read", "pointwise_write"]


def test_one_does_not_read_what_the_other_writes() -> None:
    """Buffers swapped into one another: each needs the other's old number."""
    swap = "\n%p = neg %y\n%q = neg %x\nwrite %a, %p\nwrite %b, %q"
    assert _names(HEAD + READS + swap + END, FuseWrites()).count("pointwise_write") == 2


def test_at_most_so_many_buffers() -> None:
    assert (
        _names(HEAD + READS + SUMS + WRITES + END, FuseWrites(max_buffers=1)).count(
            "pointwise_write"
        )
        == 2
    )


def test_no_write_of_more_than_an_element() -> None:
    """A large buffer is another matter: its kernel may have readers of its own."""
    text = """func @f(%a: buffer<f32[8]>, %x: f32[8]) {
      %y = neg %x
      write %a, %y
      return
    }"""
    assert_no_rewrite(FuseWrites(), text, None)


def test_no_write_of_what_others_read() -> None:
    text = HEAD + READS + "\n%p = add %x, %s\nwrite %a, %p\nreturn %p }"
    assert_no_rewrite(FuseWrites(), text, None)


def test_no_write_of_what_is_reduced_to_one_element() -> None:
    text = """func @f(%a: buffer<f32[1]>, %x: f32[1, 8]) {
      %y = pointwise [%x] {body = func @region(%x: f32[1, 8]) {
        %m = amax %x {axes = (1,)}
        return %m
      }}
      write %a, %y
      return
    }"""
    assert_no_rewrite(FuseWrites(), text, None)


def test_no_write_with_a_cast() -> None:
    text = """func @f(%a: buffer<i32[]>, %x: i64[]) {
      %y = neg %x
      write %a, %y
      return
    }"""
    assert_no_rewrite(FuseWrites(), text, None)
