"""Routers in Triton: the experts that torch chooses, and their weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fuseline.codegen.gpu.lower_route import FEW_TOKENS
from fuseline.codegen.gpu.route import RouteKernel
from fuseline.codegen.lower import emit
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.harness import binaries, run_func
from tests.codegen.gpu.interpreter import interpreter
from tests.codegen.oracle import DTYPES, assert_numbers, seeded
from tests.codegen.router_cases import (
    REFUSED,
    Router,
    correction_of,
    exact_weights,
    reference,
    routers,
    stable_topk,
    title,
)

ROUTERS = routers()


def route(router: Router, logits: Tensor, correction: Tensor | None) -> list[Tensor]:
    """What the interpreted kernel gives, with 16 tokens in a block."""
    kernel = RouteKernel(**dataclasses.asdict(router), block_tokens=16)
    rows = logits.shape[0]
    weights = torch.full((rows, kernel.k), 7.0).to(DTYPES[kernel.weight_dtype])
    indices = torch.full((rows, kernel.k), -1)
    given = [logits] if correction is None else [logits, correction]
    interpreter().run(
        kernel.symbol,
        kernel.render(),
        [*given, weights, indices],
        [rows, logits.stride(0)],
        [-(-rows // 16), 1, 1],
    )
    return [weights, indices]


@pytest.mark.parametrize("router", ROUTERS, ids=title)
def test_random_logits(router: Router) -> None:
    """The same experts, and weights as close to the exact ones of these experts as eager's."""
    logits = seeded(19, router.experts + 3, dtype=DTYPES[router.logits], scale=2.0)
    logits = logits[:, : router.experts]
    correction = correction_of(router)
    want = reference(router, logits, correction, stable=True)
    weights, indices = route(router, logits, correction)
    order, eager = in_order(indices, weights), in_order(want[1], want[0])
    assert torch.equal(order[0], eager[0])
    assert_numbers(order[1], eager[1], exact_weights(router, logits.double(), correction, order[0]))


def in_order(indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the order of the experts."""
    order = indices.sort(-1).indices
    return indices.gather(-1, order), weights.gather(-1, order)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("router", ROUTERS, ids=title)
def test_equal_scores_infinities_and_nan(router: Router, special: bool) -> None:
    """Of equal scores those of the first experts are chosen, first; a NaN before any number."""
    generator = torch.Generator().manual_seed(3)
    shape = (32, router.experts)
    logits = torch.randint(-2, 3, shape, generator=generator).float()
    logits[16:] = logits[16:].sign()
    if special:
        for odd in (math.inf, -math.inf, math.nan):
            strewn = torch.rand(shape, generator=generator) < 0.03
            logits = logits.masked_fill(strewn & (torch.arange(32) % 7 > 2)[:, None], odd)
        logits[0], logits[1], logits[2] = math.nan, -math.inf, math.inf
    logits = logits.to(DTYPES[router.logits])
    correction = correction_of(router, whole=True)
    want = reference(router, logits, correction, stable=True)
    weights, indices = route(router, logits, correction)
    assert torch.equal(indices, want[1])
    tolerance = 4 * torch.finfo(DTYPES[router.dtype]).eps
    torch.testing.assert_close(
        weights.float(), want[0].float(), equal_nan=True, rtol=tolerance, atol=tolerance
    )


TEXT = """func @f(%x: bf16[B, S, 24], %w: f32[24]) {
  %s = slice %x {axis = 2, start = 4, stop = 20}
  %c = slice %w {axis = 0, start = 0, stop = 16}
  %a, %b = route %s, %c
    {k = 3, score = "sigmoid", groups = 4, top_groups = 2, group_score = "top2", normalize = "sum"}
  %d, %e = route %x {k = 5, dtype = bf16, weight_dtype = bf16, normalize = "softmax"}
  return %a, %b, %d, %e
}"""


@pytest.mark.parametrize("sizes", [(2, 3), (1, 1), (2, 0), (0, 4)])
def test_lowering(sizes: tuple[int, int]) -> None:
    """Of rows that lie apart, of no tokens."""
    given = [
        seeded(*sizes, 24, dtype=torch.bfloat16),
        seeded(24, dtype=torch.float32, seed=1),
    ]
    with stable_topk():
        want = evaluate(parse_func(TEXT), [*given])
    func = parse_func(TEXT)
    machine = run_func(func, given)
    assert [s.op.name for s in machine.steps] == ["route", "route"]
    for value, expected in zip(func.returns, want, strict=True):
        got = machine.tensor(value)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)


def test_many_tokens_share_a_block() -> None:
    func = parse_func("func @f(%x: f32[T, 64]) { %a, %b = route %x {k = 2}  return %a, %b }")
    (step,) = emit(func, LayoutMap(func), "cuda")
    few, many = step.launches
    assert few.when is not None
    assert few.when[1:] == (0, FEW_TOKENS)
    assert isinstance(few.kernel, RouteKernel)
    assert isinstance(many.kernel, RouteKernel)
    assert (few.kernel.block_tokens, many.kernel.block_tokens) == (1, 4)


@pytest.mark.parametrize(("kind", "more", "reason"), REFUSED)
def test_no_route(kind: str, more: str, reason: str) -> None:
    func = parse_func(f"""func @f(%x: {kind}) {{
      %a, %b = route %x {{k = 1{more}}}
      return %a, %b
    }}""")
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert step.refusal == reason


RELEASED = {
    "qwen3-moe": "route %x {k = 8, normalize = sum}",
    "deepseek-v3": """route %x, %c {k = 8, score = sigmoid, groups = 8, top_groups = 4,
      group_score = top2, group_fill = 0.0, normalize = sum, eps = 1e-20, scale = 2.5}""",
    "gpt-oss": "route %x {k = 4, score = none, dtype = bf16, normalize = softmax}",
}


SIZES = {"qwen3-moe": (128, "bf16"), "deepseek-v3": (256, "f32"), "gpt-oss": (32, "bf16")}
"""Experts, and the type of the logits."""


def released(name: str, experts: int, dtype: str) -> str:
    """The text of a func with one router."""
    op = RELEASED[name]
    for word in ("sum", "sigmoid", "softmax", "top2", "none"):
        op = op.replace(f"= {word}", f'= "{word}"')
    return f"""func @f(%x: {dtype}[T, {experts}], %c: f32[{experts}]) {{
      %a, %b = {op}
      return %a, %b
    }}"""


@pytest.mark.parametrize("name", RELEASED)
def test_binaries_of_released_routers(name: str, binary_cache: Cache) -> None:
    assert binaries(released(name, *SIZES[name]), binary_cache)


@pytest.mark.slow
def test_binaries_of_the_most_experts(binary_cache: Cache) -> None:
    text = "func @f(%x: bf16[T, 8192]) { %a, %b = route %x {k = 8}  return %a, %b }"
    assert binaries(text, binary_cache)
