"""fuse-sandwich-norm: the norms on both sides of a residual add."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_add_rms_norm import FuseAddRmsNorm
from fuseline.passes.fuse_sandwich_norm import FuseSandwichNorm
from fuseline.testing import assert_no_rewrite, assert_rewrites

HEAD = """func @f(%x: f16[B, S, 24], %r: f16[B, S, 24], %w: f16[24], %u: f16[24], %v: f32[24]) {"""
FIRST = '{eps = 1e-05, offset = 1.0, cast = "last"}'
NEXT = '{eps = 0.001, offset = 0.5, cast = "before_weight"}'


@pytest.mark.parametrize("sides", ["%r, %n", "%n, %r"])
def test_both_norms_keep_their_attributes_and_their_sites(sides: str) -> None:
    run = assert_rewrites(
        (FuseAddRmsNorm(), FuseSandwichNorm()),
        before=f"""{HEAD}
          %n = rms_norm %x, %w {FIRST}
          %s = add {sides}
          %y = rms_norm %s, %u {NEXT}
          return %s, %y
        }}""",
        after=f"""{HEAD}
          %s, %y = sandwich_norm %x, %r, %w, %u {{eps = 1e-05, offset = 1.0, cast = "last",
            next_eps = 0.001, next_offset = 0.5, next_cast = "before_weight"}}
          return %s, %y
        }}""",
    )
    assert [(s.pattern, s.status) for s in run.sites()] == [("add_rms_norm", "fused")] * 2


def test_norms_without_weights() -> None:
    assert_rewrites(
        FuseSandwichNorm(),
        before=f"{HEAD}\n%n = rms_norm %x\n%s, %y = add_rms_norm %r, %n\nreturn %s, %y\n}}",
        after=f"{HEAD}\n%s, %y = sandwich_norm %x, %r\nreturn %s, %y\n}}",
    )


@pytest.mark.parametrize(
    "body",
    [
        "%n = rms_norm %x, %w\n%s, %y = add_rms_norm %r, %n, %u\nreturn %s, %y, %n",
        "%n = rms_norm %x, %w\n%s, %y = add_rms_norm %n, %n, %u\nreturn %s, %y",
        "%n = rms_norm %x, %w\n%s, %y = add_rms_norm %r, %n, %v\nreturn %s, %y",
        "%n = rms_norm %x, %w\n%s = add %r, %n\nreturn %s",
    ],
    ids=["returned", "added-to-itself", "weight-of-another-type", "no-second-norm"],
)
def test_no_fuse(body: str) -> None:
    assert_no_rewrite(FuseSandwichNorm(), f"{HEAD}\n{body}\n}}", None)
