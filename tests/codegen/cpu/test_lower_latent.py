"""Latent attention from a func in text form to numbers, on values that views have moved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fuseline.codegen.latent_choice import most_absorbed
from fuseline.codegen.lower import emit
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cpu.test_lower_rows import run
from tests.codegen.oracle import DTYPES, assert_numbers, seeded

ABSORBED = ["latent_query", "latent_attend", "latent_value"]
CAUSAL = ", causal = true"


def text(dtype: str, queries: str = "S") -> str:
    """Queries out of a product's result, and a cache whose rows hold latent and shared key."""
    given = f"%x: {dtype}[B, {queries}, 60], %c: {dtype}[B, 1, T, 48]"
    return f"""func @f({given}, %w: {dtype}[96, 40], %p: i64[B, {queries}]) {{
      %r = reshape %x {{shape = (B, {queries}, 3, 20)}}
      %q = permute %r {{dims = (0, 2, 1, 3)}}
      %l = slice %c {{axis = 3, start = 0, stop = 40}}
      %s = slice %c {{axis = 3, start = 40, stop = 48}}
      %y = latent_attention %q, %l, %w, %s, _, %p {{key = 12, value = 20, scale = 0.2{CAUSAL}}}
      %t = permute %y {{dims = (0, 2, 1, 3)}}
      %o = reshape %t {{shape = (B, {queries}, 60)}}
      return %o
    }}"""


def arguments(dtype: torch.dtype, queries: int, keys: int) -> list[Tensor]:
    return [
        seeded(2, queries, 60, dtype=dtype),
        seeded(2, 1, keys, 48, dtype=dtype, seed=1),
        seeded(96, 40, dtype=torch.float32, seed=2).mul(40**-0.5).to(dtype),
        torch.stack([torch.arange(queries) + keys - queries, torch.arange(queries)]),
    ]


@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_both_forms_by_the_number_of_queries(dtype: str) -> None:
    for queries, keys in ((1, 90), (5, 7), (70, 75)):
        check(text(dtype), arguments(DTYPES[dtype], queries, keys), dtype)


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_weights_apart_and_fewer_key_heads(apart: bool) -> None:
    """The rows of values in a weight of their own; two query heads, or four, to a key head."""
    for groups in (2, 1):
        rows, more = (groups * 12, f", %v: f32[{groups * 20}, 40]") if apart else (groups * 32, "")
        source = text("f32").replace("%w: f32[96, 40]", f"%w: f32[{rows}, 40]{more}")
        source = source.replace("60", "80").replace("(B, S, 3, 20)", "(B, S, 4, 20)")
        source = source.replace("%p {", "%p, _, %v {") if apart else source
        for queries, keys in ((1, 50), (70, 75)):
            x, cache, w, p = arguments(torch.float32, queries, keys)
            w = w.repeat(2, 1)
            weights = [w[:rows], w[rows : rows + groups * 20]] if apart else [w[:rows]]
            check(source, [torch.cat([x, x[..., :20]], -1), cache, *weights, p], "f32")


def check(source: str, given: list[Tensor], dtype: str) -> None:
    """The launches give what the reference gives, in float64 too."""
    want = evaluate(parse_func(source), given)[0]
    exact = [a.double() if a.dtype.is_floating_point else a for a in given]
    oracle = evaluate(parse_func(source.replace(f"{dtype}[", "f64[")), exact)[0]
    for nth in (1, 3):
        func = parse_func(source)
        machine = run(func, given, nth)
        assert [s.op.name for s in machine.steps] == ["latent_attention"]
        got = machine.tensor(func.returns[0])
        assert isinstance(want, Tensor)
        assert isinstance(oracle, Tensor)
        assert_numbers(got, want, oracle, like_eager=dtype == "f32")


def test_launches_by_the_number_of_queries() -> None:
    func = parse_func(text("bf16"))
    (step,) = emit(func, LayoutMap(func))
    most = most_absorbed(12, 20, 40, keys=None)
    assert [launch.kernel.family for launch in step.launches] == [*ABSORBED, "latent_expanded"]
    assert [launch.when and launch.when[1:] for launch in step.launches] == [
        *[(0, most)] * 3,
        (most + 1 if most else 0, None),
    ]


@pytest.mark.parametrize(("queries", "families"), [("1", ABSORBED), ("500", ["latent_expanded"])])
def test_one_form_where_the_number_of_queries_is_known(queries: str, families: list[str]) -> None:
    func = parse_func(text("bf16", queries))
    (step,) = emit(func, LayoutMap(func))
    assert [launch.kernel.family for launch in step.launches] == families
    assert [launch.when for launch in step.launches] == [None] * len(families)


def test_few_queries_are_fewer_where_the_cache_is_short() -> None:
    long = most_absorbed(64, 64, 256, keys=None)
    assert long is not None
    assert most_absorbed(64, 64, 256, keys=1 << 20) in (long - 1, long)
    short = most_absorbed(64, 64, 256, keys=100)
    assert short is not None
    assert 1 <= short < long
    assert most_absorbed(64, 64, 64, keys=None) is None
    assert most_absorbed(64, 64, 256, keys=0) == 1


def test_no_kernel_for_weights_that_do_not_lie_row_by_row() -> None:
    source = text("f32").replace("%w: f32[96, 40]", "%v: f32[40, 96]")
    source = source.replace("%r = reshape", "%w = permute %v {dims = (1, 0)}\n      %r = reshape")
    func = parse_func(source)
    (step, *_) = emit(func, LayoutMap(func))
    assert "does not lie row by row" in step.refusal


def test_no_kernel_for_double() -> None:
    func = parse_func(text("f64"))
    (step, *_) = emit(func, LayoutMap(func))
    assert "one floating type" in step.refusal


def test_a_latent_that_does_not_lie_side_by_side_is_copied() -> None:
    source = text("f32").replace("%c: f32[B, 1, T, 48]", "%d: f32[B, 1, 48, T]")
    source = source.replace(
        "%r = reshape", "%c = permute %d {dims = (0, 1, 3, 2)}\n      %r = reshape"
    )
    func = parse_func(source)
    assert [s.op.name for s in emit(func, LayoutMap(func))] == ["copy", "copy", "latent_attention"]
