"""fuse-rms-norm-add: norms whose output is added to the residual stream."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_add_rms_norm import FuseAddRmsNorm
from fuseline.passes.fuse_rms_norm_add import FuseRmsNormAdd
from fuseline.testing import assert_no_rewrite, assert_rewrites

HEAD = """func @f(%x: bf16[B, S, 24], %r: bf16[B, S, 24], %w: bf16[24], %p: bf16[24, 24]) {"""


@pytest.mark.parametrize("sides", ["%r, %n", "%n, %r"])
def test_fuse_keeps_attributes(sides: str) -> None:
    attributes = '{eps = 1e-05, offset = 1.0, cast = "last"}'
    run = assert_rewrites(
        FuseRmsNormAdd(),
        before=f"{HEAD}\n %n = rms_norm %x, %w {attributes}\n %s = add {sides}\n return %s\n }}",
        after=f"{HEAD}\n %s = rms_norm_add %x, %r, %w {attributes}\n return %s\n }}",
    )
    assert [(s.pattern, s.status) for s in run.sites()] == [("add_rms_norm", "fused")]


def test_a_block_of_post_norms_ends_in_a_norm_of_the_sum() -> None:
    """olmo2: the norms of both sub-blocks take their add, but for the last: the model's norm."""
    assert_rewrites(
        (FuseAddRmsNorm(), FuseRmsNormAdd()),
        before=f"""{HEAD}
          %a = rms_norm %x, %w
          %s = add %r, %a
          %z = linear %s, %p
          %b = rms_norm %z, %w
          %t = add %s, %b
          %y = rms_norm %t, %w
          return %y
        }}""",
        after=f"""{HEAD}
          %s = rms_norm_add %x, %r, %w
          %z = linear %s, %p
          %b = rms_norm %z, %w
          %t, %y = add_rms_norm %s, %b, %w
          return %y
        }}""",
    )


@pytest.mark.parametrize(
    "body",
    [
        "%n = rms_norm %x, %w\n %s = add %r, %n\n %t = tanh %n\n return %s, %t",
        "%n = rms_norm %x, %w\n %s = add %r, %n\n return %s, %n",
        "%n = rms_norm %x, %w\n %s = add %n, %n\n return %s",
        "%n = rms_norm %x, %w\n %s = add %n, %w\n return %s",
        "%n = rms_norm %x, %w\n %s = mul %r, %n\n return %s",
    ],
    ids=["read-twice", "returned", "added-to-itself", "broadcast", "multiplied"],
)
def test_no_fuse(body: str) -> None:
    assert_no_rewrite(FuseRmsNormAdd(), f"{HEAD}\n {body}\n }}", None)
