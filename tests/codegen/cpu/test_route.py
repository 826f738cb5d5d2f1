"""Routers: the experts that torch chooses, in its order, and their weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fuseline.codegen.cpu.route import RouteKernel
from fuseline.codegen.lower import Launch, emit, lower
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cpu.harness import build
from tests.codegen.cpu.test_lower_rows import run
from tests.codegen.oracle import DTYPES, assert_numbers, seeded
from tests.codegen.router_cases import (
    REFUSED,
    correction_of,
    exact_weights,
    reference,
    routers,
    title,
)

KERNELS = [RouteKernel(**dataclasses.asdict(router)) for router in routers()]


def route(
    kernel: RouteKernel, logits: Tensor, correction: Tensor | None, nth: int = 1
) -> list[Tensor]:
    rows = logits.shape[0]
    weights = torch.full((rows, kernel.k), 7.0).to(DTYPES[kernel.weight_dtype])
    indices = torch.full((rows, kernel.k), -1)
    given = [logits] if correction is None else [logits, correction]
    build(kernel)([*given, weights, indices], [rows, logits.stride(0)], nth=nth)
    return [weights, indices]


@pytest.mark.parametrize("kernel", KERNELS, ids=title)
def test_random_logits(kernel: RouteKernel) -> None:
    """The same experts, and weights as close to the exact ones of these experts as eager's."""
    logits = seeded(41, kernel.experts + 3, dtype=DTYPES[kernel.logits], scale=2.0)
    logits = logits[:, : kernel.experts]
    correction = correction_of(kernel)
    want = reference(kernel, logits, correction)
    exact = exact_weights(kernel, logits.double(), correction, want[1])
    for nth in (1, 3):
        weights, indices = route(kernel, logits, correction, nth)
        assert torch.equal(indices, want[1])
        assert_numbers(weights, want[0], exact)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kernel", KERNELS, ids=title)
def test_equal_scores_infinities_and_nan(kernel: RouteKernel, special: bool) -> None:
    """Logits of few values; equal scores are chosen and ordered as `torch.topk` does."""
    generator = torch.Generator().manual_seed(3)
    shape = (200, kernel.experts)
    logits = torch.randint(-2, 3, shape, generator=generator).float()
    logits[100:] = logits[100:].sign()
    if special:
        for odd in (math.inf, -math.inf, math.nan):
            strewn = torch.rand(shape, generator=generator) < 0.03
            logits = logits.masked_fill(strewn & (torch.arange(200) % 7 > 2)[:, None], odd)
        logits[0], logits[1], logits[2] = math.nan, -math.inf, math.inf
    logits = logits.to(DTYPES[kernel.logits])
    correction = correction_of(kernel, whole=True)
    want = reference(kernel, logits, correction)
    weights, indices = route(kernel, logits, correction)
    assert torch.equal(indices, want[1])
    tolerance = 4 * torch.finfo(DTYPES[kernel.dtype]).eps
    torch.testing.assert_close(
        weights.float(), want[0].float(), equal_nan=True, rtol=tolerance, atol=tolerance
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=title)
def test_choices_seldom_differ_on_many_random_rows(kernel: RouteKernel) -> None:
    """A near tie may fall otherwise: the last digits of an exponential are not torch's."""
    logits = seeded(20000, kernel.experts, dtype=DTYPES[kernel.logits], seed=9, scale=2.0)
    correction = correction_of(kernel)
    want = reference(kernel, logits, correction)[1].sort(-1).values
    got = route(kernel, logits, correction)[1].sort(-1).values
    assert int((got != want).any(-1).sum()) <= 2


TEXT = """func @f(%x: bf16[B, S, 24], %w: f32[24]) {
  %s = slice %x {axis = 2, start = 4, stop = 20}
  %c = slice %w {axis = 0, start = 0, stop = 16}
  %a, %b = route %s, %c
    {k = 3, score = "sigmoid", groups = 4, top_groups = 2, group_score = "top2", normalize = "sum"}
  %t = permute %x {dims = (0, 2, 1)}
  %p = reshape %t {shape = (B, S, 24)}
  %d, %e = route %p {k = 5, dtype = bf16, weight_dtype = bf16, ordered = false}
  return %a, %b, %d, %e
}"""


def test_lowering() -> None:
    """Of rows that lie apart, of a transposed tensor, of no tokens."""
    for batch, tokens in ((2, 3), (1, 1), (2, 0), (0, 4)):
        given = [
            seeded(batch, tokens, 24, dtype=torch.bfloat16),
            seeded(24, dtype=torch.float32, seed=1),
        ]
        want = evaluate(parse_func(TEXT), [*given])
        for nth in (1, 3):
            func = parse_func(TEXT)
            machine = run(func, given, nth)
            assert [s.op.name for s in machine.steps] == ["route", "reshape", "route"]
            for value, expected in zip(func.returns, want, strict=True):
                got = machine.tensor(value)
                assert got.dtype == expected.dtype
                torch.testing.assert_close(got, expected)


def test_a_correction_that_is_not_dense_is_copied() -> None:
    text = """func @f(%x: f32[T, 8], %w: f32[8, 3]) {
      %c = slice %w {axis = 1, start = 1, stop = 2}
      %v = reshape %c {shape = (8)}
      %a, %b = route %x, %v {k = 3}
      return %a, %b
    }"""
    given = [seeded(5, 8, dtype=torch.float32), seeded(8, 3, dtype=torch.float32, scale=3.0)]
    want = evaluate(parse_func(text), [*given])
    func = parse_func(text)
    machine = run(func, given, 2)
    assert [s.op.name for s in machine.steps] == ["copy", "route"]
    for value, expected in zip(func.returns, want, strict=True):
        torch.testing.assert_close(machine.tensor(value), expected)


def test_one_launch_of_any_number_of_tokens() -> None:
    func = parse_func("""func @f(%x: f32[T, 8]) {
      %a, %b = route %x {k = 3}
      return %a, %b
    }""")
    launches = lower(func.ops[0], LayoutMap(func))
    assert isinstance(launches, list)
    (launch,) = launches
    assert isinstance(launch, Launch)
    assert launch.when is None


@pytest.mark.parametrize(("kind", "more", "reason"), REFUSED)
def test_no_route(kind: str, more: str, reason: str) -> None:
    func = parse_func(f"""func @f(%x: {kind}) {{
      %a, %b = route %x {{k = 1{more}}}
      return %a, %b
    }}""")
    (step,) = emit(func, LayoutMap(func))
    assert step.refusal == reason
