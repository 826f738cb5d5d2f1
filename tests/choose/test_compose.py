"""Launches by range: neighbours with one outcome are one, and torch does its share in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fuseline.assemble import assemble
from fuseline.choose.cases import Case, cases_of
from fuseline.choose.compose import Settled, configured
from fuseline.choose.decision import Form
from fuseline.codegen import lowerings
from fuseline.codegen.library import ReferenceKernel
from fuseline.codegen.lower import Emitted, emit
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.build import KernelSource, build_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.executor import Program
from fuseline.runtime.graphs import Graphed
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.native import Runner
from fuseline.runtime.toolchain import find_toolchain
from tests.runtime.graphs.cpu_recorder import CpuRecorder

assert lowerings.__all__, "importing the module registers the lowerings"

TEXT = """func @f(%x: f32[S, 32], %w: f32[32], %v: f32[32]) {
  %y = rms_norm %x, %w
  %z = silu %y
  %a = rms_norm %z, %v
  return %a, %z
}"""


def settled(*forms: Form) -> list[Settled]:
    return [Settled(form) for form in forms]


def all_settled(form: Form) -> list[Settled]:
    return settled(form, form, form, form, form)


def ranges(item: Emitted) -> list[tuple[bool, tuple[int, int | None] | None]]:
    return [
        (isinstance(n.kernel, ReferenceKernel), None if n.when is None else n.when[1:])
        for n in item.launches
    ]


def norm() -> tuple[Emitted, list[Case]]:
    func = parse_func(TEXT)
    item = emit(func, LayoutMap(func))[0]
    return item, cases_of(item, func.symbols)


def test_one_outcome_is_one_launch() -> None:
    item, cases = norm()
    assert len(cases) == 5
    assert ranges(configured(item, cases, all_settled("kernels"))) == [(False, None)]


def test_neighbours_with_one_outcome_are_one() -> None:
    item, cases = norm()
    forms: list[Form] = ["reference", "kernels", "kernels", "reference", "reference"]
    assert ranges(configured(item, cases, settled(*forms))) == [
        (True, (0, 1)),
        (True, (129, None)),
        (False, (2, 128)),
    ]


def test_no_launch_is_left_where_torch_wins_throughout() -> None:
    item, cases = norm()
    done = configured(item, cases, all_settled("reference"))
    assert (done.launches, done.refusal) == ((), "torch was measured faster")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("compose"))


def program(cache: Cache) -> Program:
    """Norms by kernels for 2 to 16 rows, and by torch for others."""
    func = parse_func(TEXT)
    layouts = LayoutMap(func)
    forms: list[Form] = ["reference", "kernels", "reference", "reference", "reference"]
    emitted = [
        configured(item, cases_of(item, func.symbols), settled(*forms))
        if item.op.name == "rms_norm"
        else item
        for item in emit(func, layouts)
    ]
    done = assemble(func, layouts, emitted)
    toolchain = find_toolchain(cache)
    sources = [KernelSource(s, k.render(), flags=k.flags) for s, k in done.kernels.items()]
    library = build_piece(cache, toolchain, sources)
    addresses = {symbol: library.address(symbol) for symbol in done.kernels}
    return Program(done.plan, Runner.open(cache, toolchain), HostKernels(addresses))


SIZES = pytest.mark.parametrize("rows", [1, 3, 16, 17, 40])


def arguments(rows: int, seed: int = 0) -> list[torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=numbers) for shape in ((rows, 32), (32,), (32,))]


@SIZES
def test_a_program_gives_the_same_on_either_side_of_a_cut(rows: int, cache: Cache) -> None:
    made, given = program(cache), arguments(rows)
    for one, other in zip(made(given), evaluate(parse_func(TEXT), given), strict=True):
        torch.testing.assert_close(one, other)


@SIZES
@pytest.mark.parametrize("refuse", [(), ("aten.rsqrt.default",)], ids=["recorded", "between"])
def test_so_does_one_from_recordings(rows: int, refuse: Sequence[str], cache: Cache) -> None:
    """Torch's share is part of a recording, or runs between two, in planned memory both times."""
    made = program(cache)
    run = Graphed(made, CpuRecorder(refuse))
    for seed in range(5):
        given = arguments(rows, seed)
        for one, other in zip(run(given), evaluate(parse_func(TEXT), given), strict=True):
            torch.testing.assert_close(one, other)
    assert run.recorded == 1


def test_what_does_not_apply_cuts_no_piece(cache: Cache) -> None:
    """All steps of a size that has kernels are one call."""
    made = program(cache)
    assert len(made.bind((5,)).segments) == 1
    assert len(made.bind((40,)).segments) == 3


def test_nothing_is_written_into_the_cache_of_decisions(cache: Cache, tmp_path: Path) -> None:
    assert not [entry for entry in cache.entries() if entry.kind == "decision"]
