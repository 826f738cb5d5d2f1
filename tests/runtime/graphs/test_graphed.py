"""Recording and replaying, with a recorder for the CPU that has the rules of CUDA graphs."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.build import Tools, build
from fuseline.errors import DeviceError, FuselineWarning, InputError
from fuseline.ir.layout import Layout
from fuseline.ir.text import parse_func
from fuseline.runtime.executor import Program
from fuseline.runtime.graphs import Graphed
from fuseline.runtime.graphs.graphed import MOVES
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.native import Runner
from tests.runtime.graphs.conftest import graphed
from tests.runtime.graphs.cpu_recorder import CpuRecorder, spoil

STEP = """func @f(%x: f32[S, 8], %w: f32[8] = param "w", %cache: buffer<f32[16, 8]>,
              %at: i64[S]) {
  %y = rms_norm %x, %w
  index_write %cache, %at, %y {axis = 0}
  %c = read %cache
  %s = sum %c {axes = (0,)}
  %z = add %y, %s
  return %z, %y
}"""
"""A step with an input, a weight and state."""

SORTED = """func @f(%x: f32[S]) {
  %a = add %x, %x
  %s, %i = aten.call [%a] {
    target = "aten.sort.default", args = ($0,), kwargs = (), types = (f32[S], i64[S])
  }
  %y = mul %s, %s
  return %y, %i
}"""
"""Two native steps with one of torch's between them."""


def step_arguments(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 8, generator=generator)
    return x, torch.randperm(16, generator=generator)[:tokens]


def spoil_own_memory(run: Graphed) -> None:
    """What the recordings own holds nothing from call to call."""
    spoil(run._arena)  # pyright: ignore[reportPrivateUsage]
    for state in run._states.values():  # pyright: ignore[reportPrivateUsage]
        if state.entry is not None:
            for output in state.entry.bound.outputs:
                memory = state.entry.slots[output.slot]
                assert memory is not None
                spoil(memory)


def test_replays_give_what_plain_runs_give(tools: Tools) -> None:
    program, recorder, run = graphed(tools, STEP)
    weight = torch.rand(8) + 0.5
    cache, plain = torch.zeros(16, 8), torch.zeros(16, 8)
    handed_out: list[tuple[Tensor, Tensor]] = []
    for call in range(6):
        for tokens in (1, 3):
            x, at = step_arguments(tokens, call)
            want = program([x, weight, plain, at])
            spoil_own_memory(run)
            got = run([x.clone(), weight, cache, at.clone()])
            for g, w in zip(got, want, strict=True):
                assert torch.equal(g, w)
                handed_out.append((g, w))
            assert torch.equal(cache, plain)
    assert run.recorded == 2
    assert [made.replays for made in recorder.made] == [5, 5]
    assert all(torch.equal(g, w) for g, w in handed_out), (
        "a later call wrote into an earlier result"
    )


def test_nothing_runs_while_recording(tools: Tools) -> None:
    """State would be written twice."""
    _, recorder, run = graphed(tools, STEP)
    weight, cache = torch.ones(8), torch.zeros(16, 8)
    run([*_with(weight, cache, 0)])
    assert not recorder.made
    before = cache.clone()
    x, at = step_arguments(2, 1)
    run([x, weight, cache, at])
    assert recorder.made[0].replays == 1
    others = torch.ones(16, dtype=torch.bool).index_fill(0, at, value=False)
    assert torch.equal(cache[others], before[others])


def _with(weight: Tensor, cache: Tensor, seed: int) -> tuple[Tensor, ...]:
    x, at = step_arguments(2, seed)
    return x, weight, cache, at


def test_steps_of_torch_are_recorded_too(tools: Tools) -> None:
    program, recorder, run = graphed(tools, SORTED)
    for seed in range(4):
        x = torch.randn(9, generator=torch.Generator().manual_seed(seed))
        for g, w in zip(run([x.clone()]), program([x]), strict=True):
            assert torch.equal(g, w)
    assert len(recorder.made) == 1
    assert recorder.made[0].replays == 3


def test_what_is_refused_runs_between_two_recordings(tools: Tools) -> None:
    program, recorder, run = graphed(tools, SORTED, refuse=["aten.sort.default"])
    for seed in range(4):
        x = torch.randn(9, generator=torch.Generator().manual_seed(seed))
        for g, w in zip(run([x.clone()]), program([x]), strict=True):
            assert torch.equal(g, w)
    kept = [made for made in recorder.made if made.replays]
    assert [made.replays for made in kept] == [3, 3]
    assert run.recorded == 1


def test_a_full_graph_allows_no_break(tools: Tools) -> None:
    _, _, run = graphed(tools, SORTED, refuse=["aten.sort.default"], mode="full")
    x = torch.randn(9)
    run([x])
    with pytest.raises(DeviceError, match="FL1008 .*aten.sort.default"):
        run([x])


def test_moved_state_is_recorded_anew_and_then_no_more(tools: Tools) -> None:
    program, _, run = graphed(tools, STEP)
    weight = torch.ones(8)
    kept: list[Tensor] = []

    def call(cache: Tensor) -> None:
        plain = cache.clone()
        x, at = step_arguments(2, len(kept))
        want, got = program([x, weight, plain, at]), run([x, weight, cache, at])
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
        assert torch.equal(cache, plain)

    for _ in range(MOVES - 1):
        kept.append(torch.zeros(16, 8))
        for _ in range(3):
            call(kept[-1])
        assert run.recorded == 1
    kept.append(torch.zeros(16, 8))
    call(kept[-1])
    kept.append(torch.zeros(16, 8))
    call(kept[-1])
    call(kept[-1])
    kept.append(torch.zeros(16, 8))
    with pytest.warns(FuselineWarning, match="FL1006 .*cache"):
        call(kept[-1])
    assert run.recorded == 0
    assert list(run.reasons) == ["cache moves from call to call"]
    call(kept[-1])


def test_the_least_used_sizes_go_first(tools: Tools) -> None:
    _, recorder, run = graphed(tools, SORTED, most=2)
    for size in (2, 3, 4, 3):
        for _ in range(2):
            run([torch.randn(size)])
    assert run.recorded == 2
    alive = [bool(made.calls) for made in recorder.made]
    assert alive == [False, True, True]


def test_a_budget_of_bytes_is_kept(tools: Tools) -> None:
    _, _, run = graphed(tools, SORTED, budget=1)
    for size in (2, 3, 4):
        for _ in range(2):
            run([torch.randn(size)])
    assert run.recorded == 1
    assert run.nbytes > 0


def test_many_tokens_run_plainly(tools: Tools) -> None:
    _, recorder, run = graphed(tools, STEP, largest=2)
    weight, cache = torch.ones(8), torch.zeros(16, 8)
    for call in range(3):
        x, at = step_arguments(3, call)
        run([x, weight, cache, at])
    assert not recorder.made
    assert list(run.reasons) == ["more than 2 tokens, which keep the device busy"]


def test_without_memory_for_a_recording_it_runs_plainly(tools: Tools) -> None:
    program, recorder, run = graphed(tools, SORTED)
    x = torch.randn(5)
    run([x])
    recorder.fail = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.warns(FuselineWarning, match="FL1007 .*out of memory"):
        got = run([x])
    recorder.fail = None
    for g, w in zip(got, program([x]), strict=True):
        assert torch.equal(g, w)
    run([x])
    assert run.recorded == 0


def test_wrong_arguments_are_refused_before_anything_runs(tools: Tools) -> None:
    _, _, run = graphed(tools, SORTED)
    with pytest.raises(InputError, match="FL0902"):
        run([torch.zeros(3, dtype=torch.int64)])


def test_expanded_inputs_are_copied_as_they_are(tools: Tools) -> None:
    text = "func @f(%x: f32[3, S]) { %y = add %x, %x  return %y }"
    func = parse_func(text)
    built = build(func, {func.args[0]: Layout(0, (0, 1))}, tools)
    assert tools.toolchain is not None
    runner = Runner.open(tools.cache, tools.toolchain)
    run = Graphed(
        Program(built.assembled.plan, runner, HostKernels(built.addresses)), CpuRecorder()
    )
    for seed in range(4):
        x = torch.randn(1, 5, generator=torch.Generator().manual_seed(seed)).expand(3, 5)
        (got,) = run([x])
        assert torch.equal(got, x + x)
    assert run.recorded == 1


def test_nothing_of_the_callers_is_kept_alive(tools: Tools) -> None:
    _, recorder, run = graphed(tools, STEP)
    weight, cache = torch.ones(8), torch.zeros(16, 8)
    alive = weakref.ref(cache)
    for call in range(3):
        x, at = step_arguments(2, call)
        run([x, weight, cache, at])
    assert run.recorded == 1
    (state,) = run._states.values()  # pyright: ignore[reportPrivateUsage]
    assert state.entry is not None
    assert all(state.entry.slots[slot] is None for slot in state.entry.fixed)
    del cache
    recorder.made.clear()
    run._forget(state)  # pyright: ignore[reportPrivateUsage]
    assert alive() is None


def test_a_buffer_of_the_model_is_read_where_it_is_until_it_moves(tools: Tools) -> None:
    """What is written into it is seen; one that moves is copied like any input from then on."""
    text = STEP.replace('param "w"', 'buffer "w"')
    program, _, run = graphed(tools, text)
    weight, cache, plain = torch.ones(8), torch.zeros(16, 8), torch.zeros(16, 8)

    def call(number: int) -> None:
        x, at = step_arguments(2, number)
        for got, want in zip(
            run([x, weight, cache, at]), program([x, weight, plain, at]), strict=True
        ):
            assert torch.equal(got, want)

    for number in range(3):
        weight.mul_(2)
        call(number)
    (state,) = run._states.values()  # pyright: ignore[reportPrivateUsage]
    assert state.entry is not None
    assert len(state.entry.copied) == 2
    for number in range(8):
        weight = weight * 2
        call(number)
    assert state.entry is not None
    assert len(state.entry.copied) == 3
    assert (state.moves, state.reason, state.replays) == (0, "", 9)


def test_buffers_that_move_together_are_copied_after_one_call(tools: Tools) -> None:
    count = 5
    args = ", ".join(f'%b{i}: f32[8] = buffer "b{i}"' for i in range(count))
    ops = [f"%y{i + 1} = add %y{i}, %b{i}" for i in range(count)]
    text = "\n".join([f"func @f(%y0: f32[8], {args}) {{", *ops, f"return %y{count} }}"])
    _, recorder, run = graphed(tools, text)
    for call in range(10):
        buffers = [torch.full((8,), float(call + i)) for i in range(count)]
        (got,) = run([torch.zeros(8), *buffers])
        assert torch.equal(got, torch.stack(buffers).sum(0))
    assert len(recorder.made) == 2
    assert [(r.calls, r.replays) for r in run.sizes] == [(10, 8)]


def test_several_threads_take_turns(tools: Tools) -> None:
    program, _, run = graphed(tools, SORTED)
    inputs = [torch.randn(size) for size in (3, 4, 5)]
    wanted = [program([x]) for x in inputs]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            for number, x in enumerate(inputs):
                pairs = zip(run([x]), wanted[number], strict=True)
                if not all(torch.equal(g, w) for g, w in pairs):
                    wrong.append(number)

    with ThreadPoolExecutor(3) as pool:
        for task in [pool.submit(work) for _ in range(3)]:
            task.result()
    assert not wrong
    assert run.recorded == 3


def test_others_give_way_before_a_recording_is_given_up(tools: Tools) -> None:
    _, recorder, run = graphed(tools, SORTED)
    for _ in range(2):
        run([torch.ones(3)])
    assert run.recorded == 1
    recorder.fail = torch.OutOfMemoryError("CUDA out of memory")
    run([torch.ones(4)])
    with pytest.warns(FuselineWarning, match="FL1007"):
        run([torch.ones(4)])
    assert recorder.trimmed == 2
    assert run.recorded == 0
    recorder.fail = None
    run([torch.ones(3)])
    assert run.recorded == 1


def test_recordings_give_way_to_a_call_without_one(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, recorder, run = graphed(tools, SORTED)
    for _ in range(2):
        run([torch.ones(3)])
    slots = Program.slots

    def full(self: Program, *given: Any) -> Any:
        if run.recorded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return slots(self, *given)

    monkeypatch.setattr(Program, "slots", full)
    x = torch.randn(7)
    for g, w in zip(run([x]), program([x]), strict=True):
        assert torch.equal(g, w)
    assert run.recorded == 0
    assert recorder.trimmed == 1


def test_without_memory_for_a_call_it_says_what_it_needs(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _, run = graphed(tools, SORTED)

    def full(self: Program, *given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Program, "slots", full)
    for call in (program, run):
        with pytest.raises(torch.OutOfMemoryError, match="FL1010 .*bytes of temp") as caught:
            call([torch.randn(7)])
        assert isinstance(caught.value, DeviceError)
