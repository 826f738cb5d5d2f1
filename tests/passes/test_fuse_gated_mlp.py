"""fuse-gated-mlp: gate and up as one product."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_gated_mlp import FuseGatedMlp
from fuseline.testing import assert_no_rewrite, assert_rewrites

HEAD = """func @f(%x: bf16[B, S, 8], %g: bf16[12, 8] = param "g", %u: bf16[12, 8] = param "u",
  %d: bf16[8, 12] = param "d", %gb: bf16[12] = param "gb", %ub: bf16[12] = param "ub",
  %db: bf16[8] = param "db") {"""


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
def test_fuse_with_biases(activation: str) -> None:
    assert_rewrites(
        FuseGatedMlp(),
        before=f"""{HEAD}
          %y = gated_mlp %x, %g, %u, %d, %gb, %ub, %db {{activation = "{activation}"}}
          return %y
        }}""",
        after=f"""{HEAD}
          %h = gated_linear %x, %g, %u, %gb, %ub {{activation = "{activation}"}}
          %y = linear %h, %d, %db
          return %y
        }}""",
    )


def test_fuse_of_a_merged_projection() -> None:
    head = 'func @f(%x: f32[B, 8], %gu: f32[24, 8] = param "gu", %d: f32[8, 12] = param "d") {'
    halves = """
          %g = slice %gu {axis = 0, start = 0, stop = 12}
          %u = slice %gu {axis = 0, start = 12, stop = 24}"""
    assert_rewrites(
        FuseGatedMlp(),
        before=f"{head}{halves}\n %y = gated_mlp %x, %g, %u, %d\n return %y\n }}",
        after=head + halves + "\n%h = gated_linear %x, %g, %u\n%y = linear %h, %d\nreturn %y\n}",
    )


SPANS = {
    "EARLY": "axis = 0, start = 0, stop = 12",
    "LATE": "axis = 0, start = 12, stop = 24",
    "EVERY_OTHER": "axis = 0, start = 0, stop = 24, step = 2",
}


@pytest.mark.parametrize(
    ("halves", "why"),
    [
        ("%g = slice %gu {LATE}; %u = slice %gu {EARLY}", "not from adjacent rows"),
        ("%g = slice %gu {EVERY_OTHER}; %u = slice %gu {LATE}", "not from adjacent rows"),
        ("%g = slice %gu {EARLY}; %u = tanh %g", "come from slice and tanh"),
    ],
)
def test_no_fuse_of_parts_that_do_not_lie_side_by_side(halves: str, why: str) -> None:
    head = 'func @f(%x: f32[B, 8], %gu: f32[24, 8] = param "gu", %d: f32[8, 12] = param "d") {'
    for name, span in SPANS.items():
        halves = halves.replace(name, span)
    text = f"{head}\n{halves}\n %y = gated_mlp %x, %g, %u, %d\n return %y\n }}"
    assert_no_rewrite(FuseGatedMlp(), text.replace(";", "\n"), why)


def test_no_fuse_where_gate_is_up() -> None:
    assert_no_rewrite(
        FuseGatedMlp(),
        f"{HEAD}\n %y = gated_mlp %x, %g, %g, %d\n return %y\n }}",
        "gate g is read 2 times",
    )


def test_no_fuse_with_one_bias() -> None:
    assert_no_rewrite(
        FuseGatedMlp(),
        f"{HEAD}\n %y = gated_mlp %x, %g, %u, %d, %gb\n return %y\n }}",
        "only one of gate and up has a bias",
    )


def test_no_fuse_of_a_pinned_weight() -> None:
    assert_no_rewrite(
        FuseGatedMlp(),
        """func @f(%x: f32[B, 8], %g: f32[12, 8] = param "g",
          %u: f32[12, 8] = param "u" pinned "hooked", %d: f32[8, 12] = param "d") {
          %y = gated_mlp %x, %g, %u, %d
          return %y
        }""",
        "up u is pinned: hooked",
    )
