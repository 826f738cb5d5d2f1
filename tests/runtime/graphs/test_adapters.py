"""Recordings of low-rank adapters, by how many are in use, with a recorder for the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline._torch import precompile
from fuseline.arguments import Numbered
from fuseline.assemble import with_padding
from fuseline.build import Tools, build
from fuseline.errors import InputError
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func
from fuseline.passes.pipeline import default_pipeline
from fuseline.runtime.executor import Program
from fuseline.runtime.graphs import Graphed
from fuseline.runtime.graphs.graphed import OFTEN
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.native import Runner
from fuseline.runtime.plan import HostStep, NativeStep
from fuseline.testing import run_passes
from tests.e2e.harness import QUIET, compilations, report_of
from tests.runtime.graphs.cpu_recorder import CpuRecorder, spoil

COUNT = 16
"""Adapters in the stack."""

RECORDED = [1, 2, 4, 8, 16]
"""What 1 to 9 are recorded as."""

PLAIN = """func @f(%x: f32[B, S, 8], %ids: i64[B], %r: f32[B, S, 6], %n: int<A>,
                   %a: f32[16, 3, 8] = param "a", %b: f32[16, 6, 3] = param "b")
    where A in 1..16 {
  %as = slice %a {axis = 0, stop = A}
  %bs = slice %b {axis = 0, stop = A}
  %down = index %as, [%ids] {axes = (0,)}
  %up = index %bs, [%ids] {axes = (0,)}
  %down_t = permute %down {dims = (0, 2, 1)}
  %up_t = permute %up {dims = (0, 2, 1)}
  %low = matmul %x, %down_t
  %delta = matmul %low, %up_t
  %y = add %r, %delta
  return %y
}"""
"""The form of a traced model: adapters of the first part of a stack, of each sequence its own."""


def seeded(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = seeded(COUNT, 3, 8, seed=98), seeded(COUNT, 6, 3, seed=99)
"""They stay where they are."""


def numbers(active: int, rows: int, seed: int) -> Tensor:
    """Adapters in use, by numbers that count from either end; the last one is among them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-active, active, (rows,), generator=generator)
    ids[0], ids[-1] = active - 1, -1 - seed % active
    return ids


def of_plain_form(tools: Tools) -> tuple[Func, CpuRecorder, Graphed, Any]:
    """The func as it is written, and a program of it after all passes that is run from recordings,
    with what its callers call.
    """
    func = parse_func(PLAIN)
    run_passes(default_pipeline(), func)
    built = build(func, {}, tools)
    assert tools.toolchain is not None
    plan = with_padding(built.assembled.plan, func)
    program = Program(plan, Runner.open(tools.cache, tools.toolchain), HostKernels(built.addresses))
    recorder = CpuRecorder()
    run = Graphed(program, recorder)
    return parse_func(PLAIN), recorder, run, Numbered.of(run, func, torch.device("cpu"))


def arguments(active: int, seed: int, *, batch: int = 5) -> list[Any]:
    x, r = seeded(batch, 3, 8, seed=seed), seeded(batch, 3, 6, seed=seed + 1)
    return [x, numbers(active, batch, seed), r, active, *WEIGHTS]


def spoil_memory(run: Graphed) -> None:
    """Nothing but what a call copies is left of the last one."""
    spoil(run._arena)  # pyright: ignore[reportPrivateUsage]
    for state in run._states.values():  # pyright: ignore[reportPrivateUsage]
        for _, memory in state.entry.copied if state.entry else ():
            spoil(memory)


def counts(run: Graphed) -> list[int]:
    """How many adapters what is recorded is for."""
    return sorted(r.sizes["A"] for r in run.sizes if r.graphs)


def test_nine_counts_replay_five_recordings(tools: Tools) -> None:
    plain, recorder, run, call = of_plain_form(tools)
    for seed in range(4):
        for active in (1, 9, 3, 2, 7, 5, 8, 4, 6):
            given = arguments(active, seed)
            spoil_memory(run)
            torch.testing.assert_close(call(given), evaluate(plain, given))
    assert counts(run) == RECORDED
    assert len(recorder.made) == len(RECORDED)
    assert sum(made.replays for made in recorder.made) == 4 * 9 - len(RECORDED)
    assert not run.program.plan.unpadded


def test_a_number_counts_from_the_end_of_what_is_in_use(tools: Tools) -> None:
    """Of 5 in use and 8 that are recorded, -1 is the fifth; 5 and -6 are none."""
    plain, _, run, call = of_plain_form(tools)
    for active in (6, 7, 8):
        call(arguments(active, 0))
    given = arguments(5, 1)
    for number in (-1, -5, 4, 0):
        given[1] = torch.full((5,), number)
        torch.testing.assert_close(call(given), evaluate(plain, given))
    replays = sum(r.replays for r in run.sizes)
    for number in (5, 7, 8, 15, 16, -6, 1 << 40):
        given[1] = torch.tensor([0, 1, number, 2, 3])
        with pytest.raises(IndexError):
            evaluate(plain, given)
        with pytest.raises(IndexError):
            call(given)
    assert counts(run) == [8]
    assert sum(r.replays for r in run.sizes) == replays + 7
    given[1] = torch.tensor([0, 1, 4, 2, 3])
    torch.testing.assert_close(call(given), evaluate(plain, given))


def test_counts_and_rows_are_rounded_up_together(tools: Tools) -> None:
    plain, _, run, call = of_plain_form(tools)
    for seed in range(3):
        for active, batch in ((3, 5), (4, 7), (3, 8), (5, 6), (7, 5)):
            given = arguments(active, seed, batch=batch)
            spoil_memory(run)
            torch.testing.assert_close(call(given), evaluate(plain, given))
    assert sorted((r.sizes["A"], r.sizes["B"]) for r in run.sizes) == [(4, 8), (8, 8)]


def test_frequent_counts_get_no_recordings_of_their_own(tools: Tools) -> None:
    plain, _, run, call = of_plain_form(tools)
    for seed in range(OFTEN + 3):
        for active in (3, 4, 5):
            given = arguments(active, seed)
            torch.testing.assert_close(call(given), evaluate(plain, given))
    assert counts(run) == [4, 4, 8], "4 with 5 rows is by itself by now"


def test_more_adapters_than_the_stack_has_are_refused(tools: Tools) -> None:
    *_, call = of_plain_form(tools)
    given = arguments(5, 0)
    for wrong in (17, -1, 2.5, "s", None, 2**70):
        given[3] = wrong
        with pytest.raises(InputError, match="FL0902"):
            call(given)


class Adapted(nn.Module):
    """Two linears with a stack of adapters each, of which the first ones are in use; each adapter
    has a scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        stacks: Sequence[tuple[str, tuple[int, ...]]] = (
            ("up_a", (COUNT, 3, 8)),
            ("up_b", (COUNT, 12, 3)),
            ("down_a", (COUNT, 3, 12)),
            ("down_b", (COUNT, 8, 3)),
        )
        self.scales = nn.Parameter(torch.rand(COUNT))
        for seed, (name, shape) in enumerate(stacks):
            self.register_parameter(name, nn.Parameter(seeded(*shape, seed=seed)))

    def adapted(self, base: nn.Linear, name: str, x: Tensor, ids: Tensor, active: int) -> Tensor:
        a, b = getattr(self, f"{name}_a"), getattr(self, f"{name}_b")
        scales = self.scales[:active][ids]
        return base(x) + x @ a[:active][ids].mT @ b[:active][ids].mT * scales[:, None, None]

    def forward(self, x: Tensor, ids: Tensor, active: int) -> Tensor:
        x = torch.relu(self.adapted(self.up, "up", x, ids, active))
        return self.adapted(self.down, "down", x, ids, active)


@QUIET
@pytest.mark.slow
def test_a_model_records_few_counts(recorded: list[Graphed]) -> None:
    cast("Any", torch).manual_seed(0)
    model = Adapted().eval()
    compiled = fuseline.compile(model, dynamic=True, reuse=False)
    with torch.no_grad():
        for seed in range(3):
            for active in (9, 3, 1, 2, 7, 5, 8, 4, 6):
                x, ids = seeded(5, 3, 8, seed=seed), numbers(active, 5, seed)
                for run in recorded:
                    spoil_memory(run)
                torch.testing.assert_close(compiled(x, ids, active), model(x, ids, active))
    report = report_of(compiled)
    assert not [s for s in report.sites if s.status == "missed"], report
    assert report.count("multi_lora") == 2
    (run,) = recorded
    assert not run.program.plan.unpadded
    assert all(r.replays for r in run.sizes)
    told = [n for r in report.graphs for name, n in r.sizes.items() if "adapters in use" in name]
    assert told == RECORDED


@pytest.mark.slow
@pytest.mark.skipif(not precompile.available(), reason="this torch cannot serialise guards")
def test_a_program_from_the_cache_is_told_the_count(tmp_path: Path) -> None:
    model = Adapted().eval()
    for restored in (False, True):
        torch.compiler.reset()
        compiled: Any = fuseline.compile(model, cache_dir=tmp_path, dynamic=True)
        with torch.no_grad():
            for active in (9, 4, 16):
                x, ids = seeded(5, 3, 8, seed=active), numbers(active, 5, active)
                torch.testing.assert_close(compiled(x, ids, active), model(x, ids, active))
        assert bool(compiled.report().stats.get("graphs from the cache", 0)) == restored


@QUIET
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FL1005:fuseline.errors.FuselineWarning")
def test_only_grids_of_a_program_for_a_gpu_read_the_count() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    model = Adapted().eval()
    compiled = fuseline.compile(model, target="sm_90", dynamic=True, reuse=False)
    with torch.no_grad():
        for active in (9, 4):
            x, ids = seeded(5, 3, 8, seed=1), numbers(active, 5, 1)
            torch.testing.assert_close(compiled(x, ids, active), model(x, ids, active))
    (compilation,) = compilations(compiled)
    plan = compilation.built.assembled.plan
    (counted,) = plan.variants
    assert (counted.most, counted.args, dict(plan.unpadded)) == (COUNT, (), {})
    assert not [step for step in plan.steps if isinstance(step, HostStep)]
    native = [step for step in plan.steps if isinstance(step, NativeStep)]
    sized = [step for step in native if counted.symbol in str(step.grid)]
    assert {step.label for step in sized} == {"multi_lora"}
    rest = [(s.buffers, s.dims, s.scratch, s.when) for s in native]
    assert counted.symbol not in str(rest)
