"""fuse-add-rms-norm: residual norms, and norms that have no residual before them."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_add_rms_norm import FuseAddRmsNorm
from fuseline.testing import assert_no_rewrite, assert_rewrites


@pytest.mark.parametrize(
    "attributes",
    [
        '{eps = 1e-05, offset = 1.0, cast = "last"}',
        '{eps = 1e-06, offset = 0.0, cast = "before_weight"}',
    ],
)
def test_fuse_keeps_attributes_and_other_readers_of_the_sum(attributes: str) -> None:
    """Decoder blocks read the residual stream again after the norm."""
    assert_rewrites(
        FuseAddRmsNorm(),
        before=f"""func @f(%x: bf16[B, S, 24], %r: bf16[B, S, 24], %w: bf16[24],
          %p: bf16[24, 24]) {{
          %s = add %r, %x
          %y = rms_norm %s, %w {attributes}
          %z = linear %y, %p
          %t = add %s, %z
          %u = rms_norm %t, %w {attributes}
          return %u, %t
        }}""",
        after=f"""func @f(%x: bf16[B, S, 24], %r: bf16[B, S, 24], %w: bf16[24],
          %p: bf16[24, 24]) {{
          %s, %y = add_rms_norm %r, %x, %w {attributes}
          %z = linear %y, %p
          %t, %u = add_rms_norm %s, %z, %w {attributes}
          return %u, %t
        }}""",
    )


def test_fuse_moves_up_before_readers_of_the_sum_that_come_before_the_norm() -> None:
    assert_rewrites(
        FuseAddRmsNorm(),
        before="""func @f(%x: f32[B, 7], %r: f32[B, 7]) {
          %s = add %x, %r
          %t = tanh %s
          %y = rms_norm %s
          return %t, %y
        }""",
        after="""func @f(%x: f32[B, 7], %r: f32[B, 7]) {
          %s, %y = add_rms_norm %x, %r
          %t = tanh %s
          return %t, %y
        }""",
    )


def test_fuse_after_the_norm_of_a_sub_block() -> None:
    """Sandwich norms: the sub-block's own norm has no sum, the next block's norm has one."""
    run = assert_rewrites(
        FuseAddRmsNorm(),
        before="""func @f(%x: f32[B, 7], %p: f32[7, 7] = param "p", %r: f32[B, 7],
          %w: f32[7], %u: f32[7]) {
          %a = linear %x, %p
          %n = rms_norm %a, %w
          %s = add %r, %n
          %y = rms_norm %s, %u
          return %y, %s
        }""",
        after="""func @f(%x: f32[B, 7], %p: f32[7, 7] = param "p", %r: f32[B, 7],
          %w: f32[7], %u: f32[7]) {
          %a = linear %x, %p
          %n = rms_norm %a, %w
          %s, %y = add_rms_norm %r, %n, %u
          return %y, %s
        }""",
    )
    fused, missed = sorted(run.sites(), key=lambda s: s.status)
    assert fused.status == "fused"
    assert missed.reason == "x comes from linear, not add"


def test_no_fuse_of_the_first_norm() -> None:
    assert_no_rewrite(
        FuseAddRmsNorm(),
        """func @f(%ids: i64[B, S], %e: f32[11, 8] = param "embed", %w: f32[8]) {
          %x = embedding %e, %ids
          %y = rms_norm %x, %w
          return %y
        }""",
        "x comes from embedding, not add",
    )


def test_no_fuse_of_a_norm_of_an_argument() -> None:
    assert_no_rewrite(
        FuseAddRmsNorm(),
        "func @f(%x: f32[B, 8]) {\n %y = rms_norm %x\n return %y\n }",
        "x comes from argument %x, not add",
    )


def test_no_second_fuse_of_one_sum() -> None:
    run = assert_rewrites(
        FuseAddRmsNorm(),
        before="""func @f(%x: f32[B, 7], %r: f32[B, 7], %w: f32[7], %u: f32[7]) {
          %s = add %x, %r
          %y = rms_norm %s, %w
          %z = rms_norm %s, %u
          return %y, %z
        }""",
        after="""func @f(%x: f32[B, 7], %r: f32[B, 7], %w: f32[7], %u: f32[7]) {
          %s, %y = add_rms_norm %x, %r, %w
          %z = rms_norm %s, %u
          return %y, %z
        }""",
    )
    assert [m.reason for m in run.missed.values()] == [
        "the add that makes %s is fused into another norm of it"
    ]


def test_no_fuse_of_a_broadcasting_add() -> None:
    assert_no_rewrite(
        FuseAddRmsNorm(),
        """func @f(%x: f32[B, 7], %r: f32[7]) {
          %s = add %x, %r
          %y = rms_norm %s
          return %y
        }""",
        "the add joins f32[B, 7] and f32[7], not two of one type",
    )


def test_no_fuse_of_a_weight_made_from_the_sum() -> None:
    assert_no_rewrite(
        FuseAddRmsNorm(),
        """func @f(%x: f32[B, 7], %r: f32[B, 7]) {
          %s = add %x, %r
          %w = mean %s {axes = (0,)}
          %y = rms_norm %s, %w
          return %y
        }""",
        "weight %w depends on the sum",
    )
