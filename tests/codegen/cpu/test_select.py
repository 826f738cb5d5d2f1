"""Top-k and running sums: exactly what torch gives on a CPU, equal elements and NaN included."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fuseline.codegen.cpu.cumsum import CumsumKernel
from fuseline.codegen.cpu.topk import TopKKernel
from fuseline.codegen.lower import emit
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cpu.harness import build
from tests.codegen.cpu.test_lower_rows import run
from tests.codegen.oracle import seeded

KINDS = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
}


def with_ties(rows: int, width: int, seed: int, values: int, special: bool) -> Tensor:
    """Whole numbers of few values, with infinities and NaN strewn in."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-values, values + 1, (rows, width), generator=generator).float()
    if special:
        for odd in (float("inf"), -float("inf"), float("nan"), -0.0):
            x[torch.rand(rows, width, generator=generator) < 0.1] = odd
    return x


def topk(x: Tensor, k: int, name: str, *, largest: bool, ordered: bool, nth: int) -> list[Tensor]:
    rows, width = x.shape
    values = torch.zeros(rows, k, dtype=x.dtype)
    indices = torch.full((rows, k), -1)
    scratch = torch.zeros(16 * width * nth, dtype=torch.uint8)
    kernel = build(TopKKernel(name, largest, ordered))
    kernel([x, values, indices, scratch], [rows, width, k, x.stride(0)], nth=nth)
    return [values, indices]


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.integers(1, 600),
    st.sampled_from(["one", "all", "few", "any"]),
    st.sampled_from([1, 3, 20, 100000]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_topk_chooses_and_orders_as_torch(
    width: int, many: str, values: int, special: bool, seed: int
) -> None:
    k = {"one": 1, "all": width, "few": max(1, width // 64)}.get(many)
    k = random.Random(seed).randint(1, width) if k is None else k
    x = with_ties(3, width, seed, values, special)
    for largest in (True, False):
        for ordered in (True, False):
            want = torch.topk(x, k, -1, largest, ordered)
            got = topk(x, k, "f32", largest=largest, ordered=ordered, nth=2)
            assert torch.equal(got[1], want.indices)
            assert torch.equal(got[0].view(torch.int32), want.values.view(torch.int32))


@pytest.mark.parametrize("name", KINDS)
def test_topk_of_every_number(name: str) -> None:
    x = seeded(5, 90, dtype=torch.float32, scale=30.0).abs().round().to(KINDS[name])[:, :77]
    for k in (1, 7, 77):
        want = torch.topk(x, k)
        got = topk(x, k, name, largest=True, ordered=True, nth=3)
        assert torch.equal(got[1], want.indices)
        assert torch.equal(got[0], want.values)


def test_topk_lowering() -> None:
    """Of strided rows, of a transposed tensor (by way of a copy), of no rows at all."""
    text = """func @f(%x: bf16[T, 40], %t: f32[24, T]) {
      %s = slice %x {axis = 1, start = 3, stop = 36}
      %a, %b = topk %s {k = 5, axis = 1}
      %p = permute %t {dims = (1, 0)}
      %c, %d = topk %p {k = 3, axis = 1, largest = false, ordered = false}
      return %a, %b, %c, %d
    }"""
    for tokens in (0, 1, 7):
        given = [
            seeded(tokens, 40, dtype=torch.bfloat16),
            seeded(24, tokens, dtype=torch.float32).round(),
        ]
        func = parse_func(text)
        want = evaluate(parse_func(text), [*given])
        for nth in (1, 3):
            machine = run(func.clone(), given, nth)
            assert [s.op.name for s in machine.steps] == ["topk", "copy", "topk"]
            for value, expected in zip(machine.layouts.func.returns, want, strict=True):
                assert torch.equal(machine.tensor(value), expected)


@pytest.mark.parametrize(
    ("kind", "axis", "reason"),
    [
        ("f32[4, 9]", 0, "axis 0 of f32[4, 9]; the kernel takes the last one"),
        ("bool[4, 9]", 1, "x bool[4, 9]; the kernel takes numbers"),
    ],
)
def test_no_topk(kind: str, axis: int, reason: str) -> None:
    func = parse_func(f"""func @f(%x: {kind}) {{
      %a, %b = topk %x {{k = 2, axis = {axis}}}
      return %a, %b
    }}""")
    (step,) = emit(func, LayoutMap(func))
    assert step.refusal == reason


def test_no_topk_of_more_than_there_are() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(IndexError):
        topk(x, 5, "f32", largest=True, ordered=True, nth=1)


@pytest.mark.parametrize("name", [*KINDS, "bool"])
@pytest.mark.parametrize(("axis", "shape"), [(0, (7,)), (1, (3, 5, 2)), (2, (2, 3, 11))])
def test_cumsum(name: str, axis: int, shape: tuple[int, ...]) -> None:
    kind = torch.bool if name == "bool" else KINDS[name]
    x = (seeded(*shape, dtype=torch.float32, scale=40.0).abs() - 20.0 * kind.is_signed).to(kind)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    want = torch.cumsum(x, axis)
    got = torch.zeros_like(want)
    dims = [outer, inner, shape[axis], shape[axis] * inner, 1, inner]
    build(CumsumKernel(name))([x, got], dims, nth=2)
    assert torch.equal(got, want)


def test_cumsum_carries_what_is_not_finite() -> None:
    x = torch.tensor([1.0, float("inf"), 2.0, -float("inf"), 1.0])
    got = torch.zeros(5)
    build(CumsumKernel("f32"))([x, got], [1, 1, 5, 5, 1, 1])
    torch.testing.assert_close(got, torch.cumsum(x, 0), equal_nan=True, rtol=0, atol=0)


def test_cumsum_lowering() -> None:
    text = """func @f(%x: f32[B, S, 3, 4], %h: i32[9], %m: bool[B, S]) {
      %a = cumsum %x {axis = 1}
      %t = permute %x {dims = (0, 2, 1, 3)}
      %b = cumsum %t {axis = 1}
      %c = cumsum %h {axis = 0}
      %d = cumsum %m {axis = 1}
      %s = slice %x {axis = 2, start = 1, stop = 3}
      %e = cumsum %s {axis = 3}
      return %a, %b, %c, %d, %e
    }"""
    for batch, tokens in ((2, 5), (1, 1), (0, 3), (2, 0)):
        given = [
            seeded(batch, tokens, 3, 4, dtype=torch.float32),
            torch.arange(9, dtype=torch.int32) - 3,
            seeded(batch, tokens, dtype=torch.float32) > 0,
        ]
        func = parse_func(text)
        want = evaluate(parse_func(text), [*given])
        for nth in (1, 3):
            machine = run(func.clone(), given, nth)
            names = [s.op.name for s in machine.steps]
            assert sorted(names) == [*["copy"] * names.count("copy"), *["cumsum"] * 5]
            for value, expected in zip(machine.layouts.func.returns, want, strict=True):
                assert torch.equal(machine.tensor(value), expected)
