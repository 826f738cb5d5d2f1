"""Kernels of low-rank adapters against the op's reference, at odd sizes and in every form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fuseline.codegen.cpu.adapters import MultiLoraKernel
from fuseline.codegen.lower import Launch, NeedDense, Refusal, lower
from fuseline.ir.core import Func
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.adapter_cases import FORMS, Case, check
from tests.codegen.cpu.harness import build
from tests.codegen.machine import Machine

MOST_SLOW = pytest.mark.parametrize(
    "dtype", ["f32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bf16", "f16"))]
)


def machine(func: Func, arguments: Sequence[Tensor], nth: int = 1) -> Machine:
    """What a func was lowered to, after a run by so many workers."""

    def call(
        launch: Launch, buffers: Sequence[Tensor | None], dims: Sequence[int], _: Sequence[int]
    ) -> None:
        build(launch.kernel)(buffers, dims, nth=nth)

    return Machine(func, arguments, call, workers=nth)


def check_workers(case: Case, ids: Sequence[int] | int) -> None:
    """The result is right, and the same whatever the number of workers."""
    alone = check(case, ids, machine)
    for nth in (2, 5):
        again = check(case, ids, lambda func, given, nth=nth: machine(func, given, nth))
        assert torch.equal(alone, again)


@pytest.mark.parametrize("dtype", ["f32", "bf16", pytest.param("f16", marks=pytest.mark.slow)])
def test_any_number_of_rows(dtype: str) -> None:
    for rows in (0, 1, 2, 3, 8, 29, 250):  # 250: more of an adapter than are multiplied at once
        check(Case(dtype=dtype, skips=True, scale=0.5), rows, machine)


QUICK = ("odd", "turned, odd", "skips", "factor, inner", "one rounding")


@MOST_SLOW
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FORMS]
)
def test_every_form(name: str, dtype: str) -> None:
    case = dataclasses.replace(FORMS[name], dtype=dtype)
    for rows in (1, 6, 37):
        check_workers(case, rows)


def test_no_row_has_an_adapter() -> None:
    case = Case(dtype="bf16", skips=True)
    arguments = case.arguments([3] * 7)
    got = check(case, [3] * 7, machine)
    assert torch.equal(got, arguments[4])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_all_rows_have_one_adapter(dtype: str) -> None:
    check_workers(Case(dtype=dtype, count=40), [39] * 90)


def test_matrices_that_no_row_uses_are_not_read() -> None:
    case = Case(count=4, skips=True)
    arguments = case.arguments([1, 3, 4, 1])
    want = check(case, [], machine, arguments=arguments)
    for unused in (0, 2):
        arguments[2][unused] = float("nan")
        arguments[3][unused] = float("nan")
    func = parse_func(case.text())
    assert torch.equal(machine(func, arguments).tensor(func.returns[0]), want)


@pytest.mark.parametrize("number", [-1, 3, 1 << 40])
def test_numbers_outside_are_an_error(number: int) -> None:
    case = Case()
    with pytest.raises(IndexError):
        machine(parse_func(case.text()), case.arguments([0, number]))


def test_a_row_does_not_depend_on_the_others() -> None:
    case = Case(dtype="bf16", depth=64)
    arguments = case.arguments([1] * 7)
    func = parse_func(case.text())
    whole = machine(func, arguments).tensor(func.returns[0]).clone()
    arguments[0][3] = float("nan")
    func = parse_func(case.text())
    spoilt = machine(func, arguments).tensor(func.returns[0])
    assert spoilt[3].isnan().all()
    others = [t for t in range(7) if t != 3]
    assert torch.equal(spoilt[others], whole[others])


def test_rows_of_any_rank() -> None:
    text = """func @f(%x: f32[B, S, 8], %ids: i64[B, S], %a: f32[3, 4, 8], %b: f32[3, 6, 4]) {
      %y = multi_lora %x, %ids, %a, %b {delta_dtype = f32, dtype = f32}
      return %y
    }"""
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(*s, generator=generator) for s in ((2, 3, 8), (3, 4, 8), (3, 6, 4)))
    ids = torch.tensor([[0, 1, 2], [2, 2, 1]])
    func = parse_func(text)
    got = machine(func, [x, ids, a, b]).tensor(func.returns[0])
    want = torch.einsum("bsk,bsrk,bsnr->bsn", x, a[ids], b[ids])
    torch.testing.assert_close(got, want)


def lowered(case: Case, **layouts: Layout) -> object:
    """What the lowering answers, with arguments that lie as told."""
    func = parse_func(case.text())
    named = {arg.hint: arg for arg in func.args}
    op = func.ops[-1]
    return lower(op, LayoutMap(func, {named[k]: v for k, v in layouts.items()}))


def test_matrices_that_lie_anyhow_are_refused() -> None:
    outcome = lowered(Case(), a=Layout(0, (640, 80, 2)))
    assert isinstance(outcome, Refusal)
    assert "does not lie row by row" in outcome.reason


def test_numbers_that_lie_apart_are_copied() -> None:
    func = parse_func(Case().text())
    ids = func.args[1]
    assert lower(func.ops[-1], LayoutMap(func, {ids: Layout(0, (2,))})) == NeedDense((ids,))


def test_no_kernel_of_unequal_types() -> None:
    text = Case().text().replace("%b: f32[", "%b: bf16[")
    func = parse_func(text)
    outcome = lower(func.ops[-1], LayoutMap(func))
    assert isinstance(outcome, Refusal)
    assert "with adapters bf16" in outcome.reason


def test_the_source_names_what_it_does() -> None:
    func = parse_func(Case(a_transposed=True).text())
    launches = lower(func.ops[-1], LayoutMap(func))
    assert isinstance(launches, list)
    kernel = launches[0].kernel
    assert isinstance(kernel, MultiLoraKernel)
    assert kernel.render().startswith("// 3 adapters, 40 to 8 to 24 f32, A [K, r], y f32\n")
