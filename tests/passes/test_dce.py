"""Dead code goes; effects, and what may have one, stay."""

from __future__ import annotations

from fuseline.passes.dce import Dce
from fuseline.testing import assert_no_rewrite, assert_rewrites


def test_dead_chains_and_dead_reads_go() -> None:
    assert_rewrites(
        Dce(),
        """func @f(%x: f32[B, 4], %k: buffer<f32[B, 4]>) {
          %a = read %k
          %b = add %a, %x
          %values, %indices = topk %x {k = 2, axis = 1}
          %d = exp %values
          return %indices
        }""",
        """func @f(%x: f32[B, 4], %k: buffer<f32[B, 4]>) {
          %values, %indices = topk %x {k = 2, axis = 1}
          return %indices
        }""",
    )


def test_unread_functional_call_goes() -> None:
    call = """%y = aten.call [%x] {target = "aten.sin.default", args = ($0,), kwargs = (),
        types = (f32[B, 4],)}"""
    text = "func @f(%x: f32[B, 4]) {{ {} return %x }}"
    assert_rewrites(Dce(), text.format(call), text.format(""))


def test_no_removal_of_writes() -> None:
    assert_no_rewrite(
        Dce(),
        """func @f(%x: f32[B, 4], %k: buffer<f32[B, 4]>) {
          write %k, %x
          return
        }""",
        None,
    )


def test_no_removal_of_calls_that_write_draw_or_are_unknown() -> None:
    for target, types in (
        ("aten.add_.Tensor", "f32[4]"),
        ("aten.rand_like.default", "f32[4]"),
        ("nowhere.op.default", "f32[4]"),
    ):
        text = f"""func @f(%x: f32[4]) {{
          %y = aten.call [%x] {{target = "{target}", args = ($0, $0), types = ({types},)}}
          return %x
        }}"""
        assert_no_rewrite(Dce(), text, None)
