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
    assert [(s.pattern, s.status) for s in run.sites()] == [
        ("add_rms_norm", "fused"),
        ("rms_norm", "fused"),
    ]


@pytest.mark.parametrize(
    "x",
    [
        "embedding %e, %ids",
        "tanh %r",
        "linear %r, %p",
    ],
)
def test_no_site_of_a_norm_that_follows_no_addition(x: str) -> None:
    """It is one fused norm: the first one of a model, or one behind a sub-block."""
    run = assert_no_rewrite(
        FuseAddRmsNorm(),
        f"""func @f(%ids: i64[B, S], %e: f32[11, 8] = param "embed", %r: f32[B, S, 8],
          %p: f32[8, 8] = param "p") {{
          %x = {x}
          %y = rms_norm %x
          return %y
        }}""",
        None,
    )
    assert [(s.pattern, s.status) for s in run.sites()] == [("rms_norm", "fused")]


def test_no_site_of_a_norm_of_an_argument_or_of_a_norm_of_a_sum() -> None:
    """The norm of a norm does not follow the addition before the first one."""
    run = assert_rewrites(
        FuseAddRmsNorm(),
        before="""func @f(%x: f32[B, 8], %r: f32[B, 8]) {
          %a = rms_norm %x
          %s = add %x, %r
          %n = rms_norm %s
          %y = layer_norm %n
          %z = rms_norm %n
          return %a, %y, %z
        }""",
        after="""func @f(%x: f32[B, 8], %r: f32[B, 8]) {
          %a = rms_norm %x
          %s, %n = add_rms_norm %x, %r
          %y = layer_norm %n
          %z = rms_norm %n
          return %a, %y, %z
        }""",
    )
    assert not run.missed
    assert sorted(s.pattern for s in run.sites()) == [
        *("add_rms_norm", "layer_norm", "rms_norm", "rms_norm")
    ]


def test_no_fuse_of_a_sum_that_a_product_took_or_that_is_cast() -> None:
    run = assert_no_rewrite(
        FuseAddRmsNorm(),
        """func @f(%x: f32[B, 8], %r: f32[B, 8], %q: f32[8, 8] = param "q") {
          %s = add %x, %r
          %c = cast %s {dtype = bf16}
          %y = rms_norm %c
          %t = linear_add %x, %q, %r
          %z = rms_norm %t
          return %y, %z
        }""",
        "the sum is cast from f32 to bf16 before the norm",
    )
    assert [(s.pattern, s.reason) for s in run.sites()] == [
        ("add_rms_norm", "the sum is cast from f32 to bf16 before the norm"),
        ("add_rms_norm", "the product of x has taken the add"),
    ]


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
    assert [m.reason for m in run.missed.values()] == ["another norm of the sum has taken the add"]


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
        "the weight, the result of mean, depends on the sum",
    )
