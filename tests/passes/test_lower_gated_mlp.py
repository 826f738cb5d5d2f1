"""lower-gated-mlp: what could not be fused is spelled out, and stays a miss of the report."""

from __future__ import annotations

import pytest

from fuseline.passes.fuse_gated_mlp import FuseGatedMlp
from fuseline.passes.fuse_pointwise import FusePointwise
from fuseline.passes.lower_gated_mlp import LowerGatedMlp
from fuseline.testing import assert_rewrites

HEAD = """func @f(%x: bf16[B, S, 8], %g: bf16[12, 8] = param "g" pinned "is tied to h",
  %u: bf16[12, 8] = param "u", %d: bf16[8, 12] = param "d", %gb: bf16[12], %ub: bf16[12],
  %db: bf16[8]) {"""
ACTIVATIONS = {
    "silu": "%s = silu %a",
    "gelu": "%s = gelu %a",
    "gelu_tanh": '%s = gelu %a {approximate = "tanh"}',
    "relu": "%s = relu %a",
    "relu2": "%r = relu %a\n%s = mul %r, %r",
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_spelled_out_with_biases(activation: str) -> None:
    mlp = f'gated_mlp %x, %g, %u, %d, %gb, %ub, %db {{activation = "{activation}"}}'
    run = assert_rewrites(
        (FuseGatedMlp(), LowerGatedMlp()),
        before=f"{HEAD}\n%y = {mlp}\nreturn %y\n}}",
        after=f"""{HEAD}
          %a = linear %x, %g, %gb
          {ACTIVATIONS[activation]}
          %b = linear %x, %u, %ub
          %h = mul %s, %b
          %y = linear %h, %d, %db
          return %y
        }}""",
    )
    (site,) = run.sites()
    assert (site.pattern, site.status) == ("gated_mlp", "missed")
    assert site.reason == "gate g is pinned: is tied to h"


def test_the_miss_outlives_what_later_passes_do() -> None:
    run = assert_rewrites(
        (FuseGatedMlp(), LowerGatedMlp(), FusePointwise()),
        before=f"{HEAD}\n%y = gated_mlp %x, %g, %u, %d\nreturn %y\n}}",
        after=f"""{HEAD}
          %a = linear %x, %g
          %b = linear %x, %u
          %h = pointwise [%a, %b] {{body = func @region(%a: bf16[B, S, 12], %b: bf16[B, S, 12]) {{
            %s = silu %a
            %h = mul %s, %b
            return %h
          }}}}
          %y = linear %h, %d
          return %y
        }}""",
    )
    assert [s.status for s in run.sites()] == ["missed"]
