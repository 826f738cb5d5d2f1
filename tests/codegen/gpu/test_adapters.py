"""Low-rank adapters in Triton against the op's reference, at odd sizes and in every form."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from fuseline.build_gpu import Candidate, choose
from fuseline.codegen.gpu import lower_adapters
from fuseline.codegen.gpu.adapters import AdapterKernel, AdapterSortKernel
from fuseline.codegen.gpu.adapters_choice import adapter_ranges, parts_of
from fuseline.codegen.gpu.experts_choice import MOST_ALIKE, Range
from fuseline.codegen.lower import Launch, lower
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import dim, symbol
from fuseline.runtime.cache import Cache
from tests.codegen.adapter_cases import FORMS, Case, check
from tests.codegen.gpu.harness import binaries_of, run_func

DTYPES = ["f32", "bf16", pytest.param("f16", marks=pytest.mark.slow)]
MOST_SLOW = pytest.mark.parametrize(
    "dtype", ["f32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bf16", "f16"))]
)
ALIKE, SORTED = Range(0, None, "alike", 16), Range(0, None, "sorted", 16)
LARGE = Range(0, None, "sorted", 64)


@contextmanager
def found(chosen: Range) -> Generator[None]:
    """Within it every number of rows is multiplied so."""

    def choose(**_: object) -> list[Range]:
        return [chosen]

    with mock.patch.object(lower_adapters, "adapter_ranges", choose):
        yield


def few(case: Case) -> Case:
    """With fewer adapters: each is a block that is interpreted, if only to end at once."""
    return dataclasses.replace(case, count=min(case.count, 20))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_rows(dtype: str) -> None:
    case = Case(dtype=dtype, skips=True, scale=0.5)
    for rows in (0, 1, 2, 15, 140):  # 140: sorted
        check(case, rows, run_func)


QUICK = ("odd", "turned, odd", "skips", "factor, inner", "one rounding")


@MOST_SLOW
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FORMS]
)
def test_every_form(name: str, dtype: str) -> None:
    case = few(dataclasses.replace(FORMS[name], dtype=dtype))
    check(case, 1, run_func)
    for chosen in (ALIKE, SORTED):
        with found(chosen):
            check(case, 5, run_func)


@pytest.mark.parametrize("dtype", DTYPES)
def test_k_in_parts(dtype: str) -> None:
    """An odd number of steps, and more parts than would be equal."""
    case = Case(dtype=dtype, depth=2100, rank=5, factor="f32", inner=True)
    assert parts_of(case.depth, 1) == 4
    check(case, 1, run_func)
    check(case, 6, run_func)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_blocks(dtype: str) -> None:
    """Some adapters with more rows than a block holds, some with none."""
    case = Case(dtype=dtype, count=4, depth=72, rank=24, skips=True)
    ids = [2 if i == 1 else i for i in case.numbers(150)]
    with found(LARGE):
        check(case, ids, run_func)


@pytest.mark.parametrize("chosen", [ALIKE, SORTED])
def test_no_row_has_an_adapter(chosen: Range) -> None:
    case = Case(dtype="bf16", skips=True)
    arguments = case.arguments([3] * 7)
    with found(chosen):
        got = check(case, [], run_func, arguments=arguments)
    assert torch.equal(got, arguments[4])


@pytest.mark.parametrize("chosen", [ALIKE, SORTED])
def test_all_rows_have_one_adapter(chosen: Range) -> None:
    with found(chosen):
        check(Case(count=9), [8] * 40, run_func)


def test_a_number_outside_is_no_adapter() -> None:
    """On the device nothing can be raised: such rows are those of base."""
    case = Case()
    for ids in ([-1], [3, 1, -5, 1 << 40], [2, 3] * 70):
        arguments = case.arguments(ids)
        inside = dataclasses.replace(case, skips=True)
        want = arguments.copy()
        want[1] = torch.tensor([i if 0 <= i < 3 else 3 for i in ids])
        right = check(inside, [], run_func, arguments=want)
        func = parse_func(case.text())
        assert torch.equal(run_func(func, arguments).tensor(func.returns[0]), right)


def test_matrices_that_no_row_uses_are_not_read() -> None:
    case = Case(count=4, skips=True)
    for chosen in (ALIKE, SORTED):
        arguments = case.arguments([1, 3, 4, 1])
        with found(chosen):
            want = check(case, [], run_func, arguments=arguments)
            for unused in (0, 2):
                arguments[2][unused] = float("nan")
                arguments[3][unused] = float("nan")
            func = parse_func(case.text())
            assert torch.equal(run_func(func, arguments).tensor(func.returns[0]), want)


@pytest.mark.parametrize("count", [1, 2, 8, 300])
def test_ranges_cover_all_numbers_of_rows(count: int) -> None:
    ranges = adapter_ranges(count=count)
    assert ranges[0].first == 0
    assert ranges[-1].last is None
    for before, after in itertools.pairwise(ranges):
        assert before.last is not None
        assert after.first == before.last + 1
    assert all(r.last <= MOST_ALIKE for r in ranges if r.find == "alike" and r.last is not None)


def launches_of(case: Case, rows: int = 0) -> list[Launch]:
    """The launches for so many rows; 0: any number."""
    func = parse_func(case.text().replace("[T", f"[{rows}" if rows else "[T"))
    made = lower(func.ops[-1], LayoutMap(func), "cuda")
    assert isinstance(made, list)
    return made


def test_blocks_follow_the_adapters_that_may_have_rows() -> None:
    func = parse_func(Case(count=8).text().replace("scale =", "active = A, scale ="))
    made = lower(func.ops[-1], LayoutMap(func), "cuda")
    assert isinstance(made, list)
    rows, active = symbol("T"), symbol("A")
    grids = {str(x.grid[1]) for x in made if isinstance(x.kernel, AdapterKernel)}
    assert str(dim((rows + 63) // 64 + active + 1)) in grids


def test_launches_for_more_adapters_than_have_rows() -> None:
    """What a graph of a greater count gives, bit by bit: blocks that are added find nothing."""
    case = Case(count=9)
    text = case.text().replace("scale =", "active = A, scale =")
    text = text.replace(") {", ", %in_use: f32[A]) {", 1)
    arguments = case.arguments([i % 3 for i in range(140)])  # so many are sorted
    exact = check(case, [], run_func, arguments=arguments)
    for active in (3, 4, 9):
        func = parse_func(text)
        machine = run_func(func, [*arguments, torch.zeros(active)])
        assert machine.binding["A"] == active
        assert torch.equal(machine.tensor(func.returns[0]), exact)


def test_symbolic_rows_choose_when_they_are_known() -> None:
    launches = launches_of(Case(count=8))
    rows = symbol("T")
    kernels = [x.kernel for x in launches]
    assert isinstance(kernels[0], AdapterSortKernel)
    assert launches[0].when == (rows, 129, None)
    products = [k for k in kernels if isinstance(k, AdapterKernel)]
    assert [k.find for k in products] == ["one", "alike", "sorted", "sorted", "sorted"] * 2
    assert [x.when[1:] for x in launches[1:] if x.when] == [
        (0, 1),
        (2, 128),
        (129, 192),
        (193, 1024),
        (1025, None),
    ] * 2


@pytest.mark.parametrize(
    ("dtype", "rank", "rows"),
    [
        ("bf16", 16, 8),
        *(
            pytest.param(dtype, rank, 0, marks=pytest.mark.slow)
            for dtype in ("bf16", "f32")
            for rank in (16, 64)
        ),
    ],
)
def test_binaries_of_released_sizes(dtype: str, rank: int, rows: int, binary_cache: Cache) -> None:
    """No spills, on any target, for 8 rows or for any number; 16 bytes are read at once."""
    case = Case(count=8, depth=4096, width=4096, rank=rank, dtype=dtype, scale=0.5)
    for target, made in binaries_of(launches_of(case, rows), binary_cache):
        if isinstance(made.launch.kernel, AdapterKernel):
            title = made.launch.kernel.title
            assert made.binary.resources["widest_load"] == 128, (target.name, title)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_binaries_of_other_forms(dtype: str, binary_cache: Cache) -> None:
    """One configuration of each launch does, if not always the first."""
    for case in (
        Case(count=8, depth=4096, width=11008, rank=17, skips=True, factor="f32"),
        Case(count=64, depth=2880, width=2880, rank=256, a_transposed=True, b_transposed=True),
        Case(count=8, depth=4096, width=1024, rank=8, rounds=False, delta="f32"),
    ):
        for launch in launches_of(dataclasses.replace(case, dtype=dtype)):
            for target in GPU_TARGETS:
                made = choose(binary_cache, launch, target)
                assert isinstance(made, Candidate), (target.name, made)
