"""fuse-norm-linear: the norm before a product in the product's kernel."""

from __future__ import annotations

import pytest

from fuseline.ir.text import parse_func
from fuseline.passes.fuse_norm_linear import FuseNormLinear
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.testing import assert_no_rewrite, assert_rewrites

HEAD = """func @f(%x: f16[B, S, 6], %r: f16[B, S, 6], %n: f16[6] = param "n",
  %w: f16[8, 6] = param "w", %u: f16[8, 6] = param "u", %b: f16[8] = param "b") {"""


def test_fuse_gate_and_up() -> None:
    assert_rewrites(
        FuseNormLinear(),
        before=f"""{HEAD}
          %y = rms_norm %x, %n {{offset = 1.0, cast = "last"}}
          %z = gated_linear %y, %w, %u {{activation = "relu2"}}
          return %z
        }}""",
        after=f"""{HEAD}
          %y, %z = norm_linear %x, _, %n, [%w, %u], []
            {{offset = 1.0, cast = "last", activation = "relu2"}}
          return %z
        }}""",
    )


def test_other_readers_of_norm_and_sum_stay() -> None:
    """A reader between the norm and the product comes behind both."""
    assert_rewrites(
        FuseNormLinear(),
        before=f"""{HEAD}
          %s, %y = add_rms_norm %x, %r, %n
          %e = exp %y
          %a, %c = merged_linear %y, [%w, %u]
          %d = linear %y, %w, %b
          return %s, %e, %a, %c, %d
        }}""",
        after=f"""{HEAD}
          %s, %y, %a, %c = norm_linear %x, %r, %n, [%w, %u], []
          %e = exp %y
          %d = linear %y, %w, %b
          return %s, %e, %a, %c, %d
        }}""",
    )


@pytest.mark.parametrize(
    "body",
    [
        "%y = layer_norm %x, %n  %z = linear %y, %w",
        "%y = rms_norm %x, %n  %e = exp %y  %z = linear %e, %w",
        "%y = rms_norm %x, %n  %z = gated_linear %y, %w, %u, %b",
        "%y = rms_norm %w, %n  %z = linear %y, %y",
    ],
    ids=["another norm", "not the norm itself", "one bias of two", "a weight that is the norm"],
)
def test_no_fuse(body: str) -> None:
    assert_no_rewrite(FuseNormLinear(), f"{HEAD} {body} return %z }}", None)


def test_no_fuse_of_a_wider_norm() -> None:
    assert_no_rewrite(
        FuseNormLinear(),
        """func @f(%x: f16[B, 6], %n: f32[6], %w: f32[8, 6]) {
          %y = rms_norm %x, %n
          %z = linear %y, %w
          return %z
        }""",
        None,
    )


def test_only_for_a_gpu() -> None:
    assert FuseNormLinear() in default_pipeline(on_gpu=True)
    assert FuseNormLinear() not in default_pipeline()


def test_what_it_takes_stays_in_the_report() -> None:
    text = f"""{HEAD}
      %s = add %x, %r
      %y = rms_norm %s, %n
      %a = linear %y, %w
      %c = linear %y, %u
      return %s, %a, %c
    }}"""
    sites = PassManager(default_pipeline(on_gpu=True)).run(parse_func(text)).sites()
    assert [(s.pattern, s.status) for s in sites] == [("norm_linear", "fused")]
    assert sites[0].details["swallowed"] == "add_rms_norm; merged_linear"
