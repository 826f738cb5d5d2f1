"""Where the ops of a rewrite come from: the places of what they replace, and no others."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fuseline.ir.core import Func
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.attribute import MOST
from fuseline.passes.fuse_add_rms_norm import FuseAddRmsNorm
from fuseline.passes.merge_linears import MergeLinears
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.raise_attention import RaiseAttention
from fuseline.passes.rewrite import Pass
from fuseline.testing import run_passes


def placed(text: str) -> Func:
    """A func in which the place of each op is the name of its first result."""
    lines = [
        f'{line} @ "{line.split("=")[0].split(",")[0].strip()[1:]}" "m.py:{number}"'
        if " = " in line and not line.startswith("func")
        else line
        for number, line in enumerate(text.splitlines())
    ]
    return parse_func("\n".join(lines))


def after(text: str, *passes: Pass) -> dict[str, set[str]]:
    """The modules that each op came from, by the op's first result."""
    func = placed(text)
    run_passes(passes, func)
    again = parse_func(print_func(func, locations=True))
    assert print_func(again, locations=True) == print_func(func, locations=True)
    return {op.results[0].hint: {at.module for at in op.sources} for op in func.ops}


def test_a_fused_op_has_the_places_of_both_and_its_main_one_first() -> None:
    func = placed("""func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64]) {
  %s = add %x, %r
  %y = rms_norm %s, %w {eps = 1e-06}
  %z = neg %y
  return %z, %s
}""")
    run_passes([FuseAddRmsNorm()], func)
    fused, other = func.ops
    assert [at.module for at in fused.sources] == ["y", "s"]
    assert fused.loc == fused.sources[0]
    assert [at.module for at in other.sources] == ["z"]


def test_slices_beside_a_merged_product_have_their_own_places() -> None:
    found = after(
        """func @f(%x: bf16[B, 8], %q: bf16[6, 8] = param "q", %k: bf16[3, 8] = param "k") {
  %a = linear %x, %q
  %b = linear %x, %k
  %c = reshape %a {shape = (B, 2, 3)}
  %d = reshape %b {shape = (B, 1, 3)}
  return %c, %d
}""",
        MergeLinears(),
    )
    assert found == {"a": {"a", "b"}, "c": {"c"}, "d": {"d"}}


def test_a_mask_that_dies_with_its_last_reader_is_no_part_of_that() -> None:
    """The first of two attentions leaves the mask behind, and the second one ends it."""
    found = after(
        """func @f(%q: f32[B, 2, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8]) {
  %i = iota {length = S}
  %row = reshape %i {shape = (S, 1)}
  %see = le %i, %row
  %one = sdpa %q, %k, %v, %see {scale = 0.25}
  %two = sdpa %one, %k, %v, %see {scale = 0.25}
  return %two
}""",
        RaiseAttention(),
    )
    assert found == {"one": {"one"}, "two": {"two"}}


def test_the_places_of_many_experts_fold() -> None:
    count = MOST + 2
    values = ["x", *(f"a{n}" for n in range(count))]
    terms = [
        f'  %{y} = add %{x}, %w @ "mlp.experts.{y[1:]}.up" "m.py:7"' for x, y in pairwise(values)
    ]
    head, end = "func @f(%x: f32[B, 4], %w: f32[4]) {", f"  return %{values[-1]}"
    func = parse_func("\n".join([head, *terms, end, "}"]))
    run_passes(default_pipeline(), func)
    (op,) = func.ops
    first, *rest = (at.module for at in op.sources)
    assert first == "mlp.experts.0.up"
    assert rest == [f"mlp.experts.1..{count - 1}.up"]


@pytest.mark.parametrize(
    "places", ['"a" "b:1"', '"a" "b:1", "c" ""', '"" "b:2", "a \\"q\\"" "c:3"']
)
def test_places_come_back_as_text(places: str) -> None:
    text = f"func @f(%x: f32[4]) {{\n  %y = neg %x : f32[4] @ {places}\n  return %y\n}}\n"
    func = parse_func(text)
    assert print_func(func, locations=True) == text
    assert print_func(func.clone(), locations=True) == text
