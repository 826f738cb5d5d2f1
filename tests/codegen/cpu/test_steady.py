"""Kernels with one form for all sizes: a row has the same bits whatever rows are beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.codegen.cpu.linear_choice import choose_linear
from fuseline.codegen.lower import WORKERS
from fuseline.debug.oracle import relative_error
from fuseline.ir.core import Func
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Experts
from fuseline.ir.types import substitute
from tests.codegen.cpu.experts_cases import Mixture
from tests.codegen.cpu.harness import FLAGS, NATIVE, build
from tests.codegen.cpu.test_latent import SMALL, Case
from tests.codegen.oracle import DTYPES, seeded

STEADY = [*FLAGS, *NATIVE, "-ffp-contract=off"]


class Steady(Mixture):
    """A mixture in its one form."""

    def op(self, tokens: int) -> tuple[Func, LayoutMap, Experts]:
        """The op, with layouts that ask for it."""
        func, layouts, op = super().op(tokens)
        layouts.batch_invariant = True
        return func, layouts, op

    def of(self, tokens: int, arguments: list[Tensor], nth: int) -> Tensor:
        """The results of some tokens, by kernels that are compiled as the option asks for."""
        launches = self.lowered(tokens)
        assert isinstance(launches, list)
        for launch in launches:
            if launch.kernel.symbol not in self.kernels:
                self.kernels[launch.kernel.symbol] = build(launch.kernel, STEADY)
        return self.run(tokens, arguments, nth=nth)


@pytest.mark.parametrize(
    "form", [{"transposed": True, "down_transposed": True}, {"shared": 20, "bias": False}], ids=str
)
@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_experts(form: dict[str, Any], dtype: str) -> None:
    """Whatever other tokens go to the same expert, of which some have one and some many."""
    mixture = Steady(dtype=dtype, experts=3, top=2, hidden=300, inner=37, out=45, **form)
    most = 61
    func, _, _ = mixture.op(most)
    arguments: list[Tensor] = mixture.arguments(func, most)
    every = mixture.of(most, arguments, 1)
    assert every.isfinite().all()
    assert torch.equal(mixture.of(most, arguments, 3), every)
    chosen = random.Random(0)
    for count in (1, 2, 3, 7, 12, 25):
        rows = torch.tensor(chosen.sample(range(most), count))
        some: list[Tensor] = mixture.arguments(mixture.op(count)[0], count)  # as they lie
        for mine, whole in zip(some, arguments, strict=True):
            mine.copy_(whole[rows] if len(whole) == most else whole)
        assert torch.equal(mixture.of(count, some, 2), every[rows]), count


@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("columns", [False, True])
def test_products(dtype: str, columns: bool) -> None:
    """One kernel for any number of rows, and of workers."""
    k, n, most = 1100, 45, 90
    (choice,) = choose_linear(k=k, outputs=(n,), dtype=dtype, columns=columns, invariant=True)
    assert (choice.first, choice.last, choice.kernel.why_varies()) == (1, None, "")
    (other,) = choose_linear(
        k=k, outputs=(n,), dtype=dtype, columns=columns, invariant=True, min_tokens=3, max_tokens=4
    )
    assert other == choice
    kernel = build(choice.kernel, STEADY)
    x = seeded(most, k, dtype=DTYPES[dtype], seed=1)
    w = seeded(*((k, n) if columns else (n, k)), dtype=DTYPES[dtype], seed=2)

    def product(x: Tensor, nth: int) -> Tensor:
        y = torch.empty(len(x), n, dtype=x.dtype)
        size = int(substitute(choice.kernel.scratch_bytes(len(x), WORKERS), {str(WORKERS): nth}))
        kernel([x, w, y, torch.empty(size, dtype=torch.uint8)], [len(x), k, n], nth=nth)
        return y

    every = product(x, 1)
    exact = x.double() @ (w if columns else w.t()).double()
    assert relative_error(every, exact) <= 1e-2
    for count in (1, 2, 3, 4, 5, 6, 9, 17, 33, 65, most):
        for first in {0, most - count}:
            some = x[first : first + count].contiguous()
            assert torch.equal(product(some, 1 + count % 3), every[first : first + count]), count


@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.slow), 20])
@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_attention_in_the_latent_space(dtype: str, window: int | None) -> None:
    """Queries alone and together, with others and without: each in blocks of the same keys."""
    queries, positions = 9, torch.tensor([[50], [61], [7]]) + torch.arange(9)
    options: dict[str, Any] = {"causal": True, "positions": True, "window": window}
    kernel = SMALL.kernel("absorbed", dtype, **options, max_splits=1, steady=True)
    assert all(launch.why_varies() == "" for launch in kernel.launches())
    whole = Case(batch=3, queries=queries, positions=positions)
    given = whole.tensors(DTYPES[dtype])
    every = whole.run(kernel, given, 1)
    exact = whole.reference(kernel, given, double=True)
    assert relative_error(every, exact) <= 1e-2
    for rows in ([0], [2], [1, 0], [2, 1, 0]):
        for first, last in ((0, 1), (4, 5), (3, 7), (0, queries)):
            some = Case(
                batch=len(rows), queries=last - first, positions=positions[rows, first:last]
            )
            mine = {n: t if n == "weight" else t[rows] for n, t in given.items()}
            mine["q"] = mine["q"][:, :, first:last]
            found = some.run(kernel, mine, 1 + len(rows) % 3)
            assert torch.equal(found, every[rows, :, first:last]), (rows, first)
