"""Pieces of tiny kernels: the right memory and numbers, in the right order, on any threads."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import warnings
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fuseline.errors import IndexInputError, InternalError
from fuseline.runtime.build import KernelSource, Library, build_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.native import Launch, Piece, Runner
from fuseline.runtime.native import runner as module
from fuseline.runtime.toolchain import Toolchain

KERNELS = """
#include <stdint.h>
#include <unistd.h>
struct fl_host {
  void (*sgemm)(const char *, const char *, const int *, const int *, const int *, const float *,
                const float *, const int *, const float *, const int *, const float *, float *,
                const int *);
};
struct fl_call {
  void *const *buf; const int64_t *dim; const fl_host *host; int32_t tid, nth; int32_t *fault;
};

static void share(const fl_call *c, int64_t n, int64_t *begin, int64_t *end) {
  *begin = n * c->tid / c->nth;
  *end = n * (c->tid + 1) / c->nth;
}
// y = a * x + b, element by element; dims: n, a, b
extern "C" void axb(const fl_call *c) {
  const float *x = (const float *)c->buf[0];
  float *y = (float *)c->buf[1];
  int64_t begin, end;
  share(c, c->dim[0], &begin, &end);
  for (int64_t i = begin; i < end; ++i) y[i] = c->dim[1] * x[i] + c->dim[2];
}
// y[i] = (x[i] + x[n-1-i]) * 0.5 : reads what other shares of the step before have written
extern "C" void fold(const fl_call *c) {
  const float *x = (const float *)c->buf[0];
  float *y = (float *)c->buf[1];
  int64_t n = c->dim[0], begin, end;
  share(c, n, &begin, &end);
  for (int64_t i = begin; i < end; ++i) y[i] = (x[i] + x[n - 1 - i]) * 0.5f;
}
// counts[nth]++ by every share
extern "C" void count(const fl_call *c) {
  __atomic_fetch_add((int64_t *)c->buf[0] + c->nth, 1, __ATOMIC_RELAXED);
}
// is at fault where the number in buffer 0 is negative
extern "C" void refuse(const fl_call *c) { if (*(const int64_t *)c->buf[0] < 0) *c->fault = 1; }
// notes whether buffer 0 is null
extern "C" void is_null(const fl_call *c) { *(int64_t *)c->buf[1] = c->buf[0] == nullptr; }
extern "C" void nap(const fl_call *c) { usleep(c->dim[0]); }
// C = A B, all n x n and column major
extern "C" void product(const fl_call *c) {
  int n = c->dim[0];
  float one = 1, zero = 0;
  c->host->sgemm("N", "N", &n, &n, &n, &one, (const float *)c->buf[0], &n,
                 (const float *)c->buf[1], &n, &zero, (float *)c->buf[2], &n);
}
"""


@pytest.fixture(scope="module")
def library(built: Cache, toolchain: Toolchain) -> Library:
    return build_piece(built, toolchain, [KernelSource("test_kernels", KERNELS)])


@pytest.fixture(scope="module", params=["extension", "ctypes"])
def runner(request: pytest.FixtureRequest, built: Cache, toolchain: Toolchain) -> Runner:
    made = Runner.open(built, toolchain, extension=request.param == "extension")
    if made.binding != request.param:
        pytest.skip("no Python.h here")
    return made


Make = Callable[..., Launch]


@pytest.fixture
def launch(library: Library) -> Make:
    def make(
        symbol: str, *buffers: int | tuple[int, int], dims: Sequence[int] = (), **more: object
    ):
        refs = tuple(buf if isinstance(buf, tuple) else (buf, 0) for buf in buffers)
        made = Launch(library.address(symbol), refs, tuple(dims), label=symbol)
        return replace(made, **more)

    return make


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tasks() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


def listed(tensor: Tensor) -> list[float]:
    return [x.item() for x in tensor]


def test_a_launch_reads_and_writes_its_slots(runner: Runner, launch: Make) -> None:
    piece = runner.piece([launch("axb", 0, 1, dims=[7, 2, 1])], slots=2)
    x, y = normal(7), torch.zeros(7)
    piece([x, y])
    assert torch.equal(y, 2 * x + 1)
    other = torch.zeros(7)
    piece((x, other))  # a tuple will do, and memory is read anew
    assert torch.equal(other, y)


def test_offsets_are_bytes_from_the_first_element(runner: Runner, launch: Make) -> None:
    steps = [launch("axb", (0, 8), (1, 4), dims=[3, 1, 0])]
    x, y = normal(2, 8), torch.zeros(8)
    runner.piece(steps, slots=2)([x[1], y])  # a view has a first element of its own
    assert torch.equal(y, torch.cat([torch.zeros(1), x[1, 2:5], torch.zeros(4)]))


def test_many_launches_run_in_order(runner: Runner, launch: Make) -> None:
    steps = [launch("axb", i % 2, 1 - i % 2, dims=[5, 1, i]) for i in range(1000)]
    x = torch.zeros(5)
    runner.piece(steps, slots=2)([x, torch.zeros(5)])
    assert listed(x) == [sum(range(1000))] * 5


def test_bound_slots_keep_their_memory_and_none_leaves_them(runner: Runner, launch: Make) -> None:
    piece = runner.piece([launch("axb", 0, 1, dims=[4, 3, 0])], slots=2)
    x, y = normal(4), torch.zeros(4)
    piece.bind(1, y)
    piece([x])
    assert torch.equal(y, 3 * x)
    piece.bind(0, x[1:].data_ptr())
    piece.rebind(dims=[3, 1, 0])
    piece([None, None])
    assert torch.equal(y[:3], x[1:])


def test_null_slots_and_empty_tensors(runner: Runner, launch: Make) -> None:
    out = torch.full((1,), 7)
    piece = runner.piece([launch("is_null", -1, 0)], slots=2)
    piece([out, None])
    assert out.item() == 1
    runner.piece([launch("axb", 0, 1, dims=[0, 1, 0])], slots=2)([torch.empty(0), torch.empty(0)])
    runner.piece([], slots=0)([])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_launch_at_fault_is_named_and_the_next_run_is_not(
    runner: Runner, launch: Make, threads: int
) -> None:
    steps = [launch("refuse", i, width=2, where=f"layers.{i}") for i in range(3)]
    piece = runner.piece(steps, slots=3, threads=threads)
    good, bad = torch.tensor([3]), torch.tensor([-3])
    piece([good, good, good])
    for _ in range(2):
        with pytest.raises(
            IndexInputError, match=r"FL0905 .* layers\.1: found one given to refuse"
        ):
            piece([good, bad, bad])
        piece([good, good, good])


def test_only_lists_and_tuples_of_tensors(runner: Runner) -> None:
    with pytest.raises(TypeError, match="expected a list or a tuple, not range"):
        runner.piece([], slots=9)(range(0))  # pyright: ignore[reportArgumentType]


def test_parameters_and_other_dtypes_are_tensors(runner: Runner, launch: Make) -> None:
    weight = torch.nn.Parameter(normal(6))
    y = torch.zeros(6)
    runner.piece([launch("axb", 0, 1, dims=[6, 1, 1])], slots=2)([weight, y])
    assert torch.equal(y, weight.detach() + 1)
    for dtype in (torch.bfloat16, torch.bool, torch.int8, torch.complex64, torch.float8_e4m3fn):
        out = torch.zeros(1, dtype=torch.int64)
        piece = runner.piece([launch("is_null", 1, 0)], slots=2)
        piece([out, torch.zeros(3, dtype=dtype)])
        assert out.item() == 0


def test_a_slot_that_no_launch_uses_is_not_looked_at(runner: Runner, launch: Make) -> None:
    piece = runner.piece([launch("axb", 0, 0, dims=[2, 2, 0])], slots=2)
    x = torch.ones(2)
    piece([x, "anything"])  # pyright: ignore[reportArgumentType]
    assert listed(x) == [2, 2]


@pytest.mark.parametrize("wrong", [1, "x", torch.zeros(2, device="meta"), object()])
def test_what_is_no_cpu_tensor_is_a_type_error(runner: Runner, launch: Make, wrong: object) -> None:
    piece = runner.piece([launch("axb", 0, 1, dims=[2, 2, 0])], slots=2)
    y = torch.zeros(2)
    with pytest.raises(TypeError, match="slot 0: expected a tensor on the CPU or a GPU, not"):
        piece([wrong, y])  # pyright: ignore[reportArgumentType]
    piece([torch.ones(2), y])  # and it goes on
    assert listed(y) == [2, 2]


def test_too_many_tensors_and_slots_out_of_range(runner: Runner, launch: Make) -> None:
    piece = runner.piece([launch("axb", 0, 1, dims=[2, 2, 0])], slots=2)
    with pytest.raises(ValueError, match="3 tensors for 2 slots"):
        piece([None, None, None])
    with pytest.raises(IndexError, match="slot 2 of 2"):
        piece.bind(2, 0)
    for slot in (2, -2):
        with pytest.raises(IndexError, match=f"slot {slot} of 2"):
            runner.piece([launch("axb", slot, 1, dims=[2, 2, 0])], slots=2)


def test_rebinding_replaces_numbers(runner: Runner, launch: Make) -> None:
    piece = runner.piece([launch("axb", 0, 1, dims=[4, 1, 0])] * 2, slots=2, threads=2)
    x, y = normal(8), torch.zeros(8)
    piece.rebind(dims=[2, 3, 0, 2, 5, 0], widths=[2, 2], offsets=[0, 0, 8, 16])
    piece([x, y])
    assert torch.equal(y, torch.cat([3 * x[:2], torch.zeros(2), 5 * x[2:4], torch.zeros(2)]))
    with pytest.raises(ValueError, match="1 dims for a piece that has 6"):
        piece.rebind(dims=[1])
    with pytest.raises(ValueError, match="3 widths for a piece that has 2"):
        piece.rebind(widths=[1, 1, 1])


def test_kernels_reach_the_librarys_sgemm(runner: Runner, launch: Make) -> None:
    a, b, c = normal(9, 9), normal(9, 9, seed=1), torch.zeros(9, 9)
    runner.piece([launch("product", 1, 0, 2, dims=[9])], slots=3)([a, b, c])
    torch.testing.assert_close(c, a @ b)


def test_shares_are_as_many_as_asked_for_unless_there_is_one_thread(
    runner: Runner, launch: Make
) -> None:
    def counts(widths: Sequence[int], threads: int) -> list[float]:
        out = torch.zeros(8, dtype=torch.int64)
        steps = [launch("count", 0, width=width) for width in widths]
        runner.piece(steps, slots=1, threads=threads)([out])
        return listed(out)

    assert counts([1, 2, 3, 7], 1) == [0, 4, 0, 0, 0, 0, 0, 0]
    assert counts([1, 2, 3, 7], 2) == [0, 1, 2, 3, 0, 0, 0, 7]
    assert counts([1, 2, 5, 7, 1, 1], 4) == [0, 3, 2, 0, 0, 5, 0, 7]


def dependent_steps(launch: Make, count: int, seed: int) -> list[Launch]:
    """Steps of random widths, each reading all that the one before has written."""
    chance = random.Random(seed)
    steps: list[Launch] = []
    for i in range(count):
        source, target, width = i % 2, 1 - i % 2, chance.choice([1, 1, 2, 2, 3, 4])
        if chance.random() < 0.5:
            steps.append(launch("fold", source, target, dims=[33], width=width))
        else:
            dims = [33, 1, chance.randrange(-3, 4)]
            steps.append(launch("axb", source, target, dims=dims, width=width))
    return steps


@pytest.mark.parametrize("threads", [2, 4])
def test_thousands_of_dependent_steps_on_several_threads(
    runner: Runner, launch: Make, threads: int
) -> None:
    """More threads than cores, too: nobody waits for a thread that is not running."""
    steps = dependent_steps(launch, 4000, seed=threads)
    x = normal(33)
    serial, parallel = [x.clone(), torch.zeros(33)], [x.clone(), torch.zeros(33)]
    runner.piece(steps, slots=2)(serial)
    piece = runner.piece(steps, slots=2, threads=threads)
    for _ in range(5):
        parallel = [x.clone(), torch.zeros(33)]
        piece(parallel)
        assert torch.equal(parallel[0], serial[0])
        assert torch.equal(parallel[1], serial[1])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_independent_steps_are_waited_for_together(
    runner: Runner, launch: Make, width: int
) -> None:
    """Ten branches from one vector, then their sum: none may be missing from it."""
    branches = [
        launch("axb", 0, (1, 132 * i), dims=[33, i, 1], width=width, independent=i > 0)
        for i in range(10)
    ]
    last = launch("axb", 1, 2, dims=[330, 1, 0], width=2)
    x, out = torch.arange(1.0, 34.0), torch.zeros(10, 33)  # sums that no rounding changes
    piece = runner.piece([*branches, last], slots=3, threads=2)
    for _ in range(200):
        middle = torch.zeros(10, 33)
        out.zero_()
        piece([x, middle, out])
        assert torch.equal(out, torch.stack([i * x + 1 for i in range(10)]))


def test_a_chain_beside_an_independent_step(runner: Runner, launch: Make) -> None:
    """A dependent step after an independent one needs both it and what came before."""
    steps = [
        launch("axb", 0, 1, dims=[5, 2, 0]),
        launch("axb", 1, 2, dims=[5, 3, 0]),
        launch("axb", 0, 3, dims=[5, 5, 0], independent=True),
        launch("fold", 3, 4, dims=[5]),
        launch("fold", 2, 5, dims=[5]),
    ]
    x = normal(5)
    expected = [
        2 * x,
        6 * x,
        5 * x,
        (5 * x + (5 * x).flip(0)) * 0.5,
        (6 * x + (6 * x).flip(0)) * 0.5,
    ]
    piece = runner.piece(steps, slots=6, threads=2)
    for _ in range(200):
        tensors = [x, *(torch.zeros(5) for _ in range(5))]
        piece(tensors)
        for made, wanted in zip(tensors[1:], expected, strict=True):
            assert torch.equal(made, wanted)


def test_a_step_independent_of_the_last_may_need_those_before(runner: Runner, launch: Make) -> None:
    """Three steps that would make a chain, and one that may run beside the third of them."""
    slow = launch("nap", dims=[300])
    steps = [
        slow,
        launch("axb", 0, 1, dims=[5, 2, 0]),
        launch("axb", 1, 2, dims=[5, 3, 0]),
        launch("axb", 1, 3, dims=[5, 5, 0], independent=True),
        launch("axb", 2, 4, dims=[5, 1, 0], width=2),
    ]
    x = normal(5)
    piece = runner.piece(steps, slots=5, threads=2)
    for _ in range(100):
        tensors = [x, *(torch.zeros(5) for _ in range(4))]
        piece(tensors)
        assert torch.equal(tensors[3], 5 * (2 * x))
        assert torch.equal(tensors[4], 3 * (2 * x))


def test_several_pieces_and_torch_share_the_threads(runner: Runner, launch: Make) -> None:
    steps = dependent_steps(launch, 50, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        piece, big = runner.piece(steps, slots=2, threads=2), normal(512, 512)
        x = normal(33)
        first = [x.clone(), torch.zeros(33)]
        piece(first)
        product = big @ big
        for _ in range(20):
            again = [x.clone(), torch.zeros(33)]
            piece(again)
            assert torch.equal(again[0], first[0])
            assert torch.equal(big @ big, product)
    finally:
        torch.set_num_threads(before)


def test_the_interpreter_runs_on_while_a_piece_does(runner: Runner, launch: Make) -> None:
    piece = runner.piece([launch("nap", dims=[200_000])], slots=0)
    thread = threading.Thread(target=piece, args=([],))
    thread.start()
    laps = 0
    while thread.is_alive():
        laps += 1
    assert laps > 1000


def test_a_second_call_at_once_is_refused(runner: Runner, launch: Make) -> None:
    piece = runner.piece([launch("nap", dims=[300_000])], slots=0)
    thread = threading.Thread(target=piece, args=([],))
    thread.start()
    try:
        time.sleep(0.1)
        with pytest.raises(InternalError, match="called while it was running"):
            piece([])
        with pytest.raises(InternalError, match="changed while it was running"):
            piece.rebind(threads=2)
    finally:
        thread.join()
    piece([])


def test_addresses_are_of_the_first_elements(runner: Runner) -> None:
    base = normal(3, 8)
    given = [base, 7, base[1, 2:], base.t(), None]
    numbers = array("i", [2, 0, 3, 2])
    found = array("Q", runner.addresses(given, numbers.tobytes()))
    assert [a - base.data_ptr() for a in found] == [40, 0, 0, 40]
    assert runner.addresses(tuple(given), b"") == b""
    for wrong in (1, 4, 5, -1):
        with pytest.raises(TypeError, match=f"argument {wrong}: expected a tensor"):
            runner.addresses(given, array("i", [0, wrong]).tobytes())
    with pytest.raises(TypeError, match="expected a list or a tuple"):
        runner.addresses(cast("Any", iter(given)), numbers.tobytes())


def test_times_are_of_each_launch(runner: Runner, launch: Make) -> None:
    steps = [launch("nap", dims=[20_000], width=2), launch("nap", dims=[1000])]
    piece = runner.piece(steps, slots=0, threads=2)
    assert piece.times() == []
    piece.profile()
    for _ in range(3):
        piece([])
    long, short = piece.times()
    assert (long.label, short.label) == ("nap", "nap")
    assert 2 * 20e6 <= long.busy < 2 * 60e6
    assert 20e6 <= long.wall <= long.busy
    assert 1e6 <= short.wall == short.busy < 15e6
    piece.profile(False)
    piece([])
    assert piece.times() == []


def test_pieces_come_and_go(runner: Runner, launch: Make) -> None:
    steps = dependent_steps(launch, 200, seed=3)
    pieces: list[Piece] = []
    for _ in range(50):
        pieces = [runner.piece(steps, slots=2, threads=2) for _ in range(10)]
        pieces[3]([torch.zeros(33), torch.zeros(33)])
    del pieces
    gc.collect()


def test_a_warm_process_builds_neither_runner_nor_binding(
    built: Cache, toolchain: Toolchain, runner: Runner
) -> None:
    again = Cache.open(built.root)
    Runner.open(again, toolchain, extension=runner.binding == "extension")
    assert again.stats.built == 0


def test_without_headers_calls_go_through_ctypes(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "python_include", lambda: None)
    fresh = Cache.open(tmp_path)
    assert Runner.open(fresh, toolchain).binding == "ctypes"
    assert [entry.name for entry in fresh.entries()] == ["fuseline_runner"] * 2


def test_a_binding_in_the_cache_needs_no_headers(
    extension: Runner, built: Cache, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    del extension  # which put it there
    monkeypatch.setattr(module, "python_include", lambda: None)
    assert Runner.open(Cache.open(built.root), toolchain).binding == "extension"


def test_without_the_exchange_table_calls_go_through_ctypes(
    built: Cache, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._torch, "dlpack_exchange", lambda: None)  # pyright: ignore[reportPrivateUsage]
    assert Runner.open(Cache.open(built.root), toolchain).binding == "ctypes"


@pytest.mark.parametrize("threads", [2, 3])
def test_the_librarys_products_start_no_threads_inside_a_share(
    runner: Runner, launch: Make, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        a, b, out = normal(300, 300), normal(300, 300, seed=1), torch.zeros(4, 300, 300)
        wanted = a @ b
        naps = [launch("nap", dims=[1000], width=8)]
        runner.piece(naps, slots=0, threads=threads)([])
        known = tasks()  # torch's own threads and our helpers
        refs = [launch("product", 1, 0, (2, 360_000 * i), dims=[300]) for i in range(4)]
        steps = [replace(step, independent=True) for step in refs]
        piece = runner.piece(steps, slots=3, threads=threads)
        for _ in range(5):
            piece([a, b, out])
        for made in out:
            torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
        assert tasks() == known
        assert torch.get_num_threads() == 2  # and the limit is lifted again
    finally:
        torch.set_num_threads(before)


def test_without_the_functions_that_limit_libraries(
    built: Cache, toolchain: Toolchain, launch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._torch, "thread_limits", lambda: (0, 0, 0))  # pyright: ignore[reportPrivateUsage]
    runner = Runner.open(Cache.open(built.root), toolchain)
    try:
        out = torch.zeros(8, dtype=torch.int64)
        runner.piece([launch("count", 0, width=4)], slots=1, threads=4)([out])
        assert listed(out) == [0, 0, 0, 0, 4, 0, 0, 0]
    finally:
        monkeypatch.undo()
        Runner.open(Cache.open(built.root), toolchain)  # the library is loaded once: mend it


def test_more_shares_than_a_word_has_bits(runner: Runner, launch: Make) -> None:
    x, y = normal(1000), torch.zeros(1000)
    for width in (31, 32, 33, 64, 100, 128, 500):
        steps = [launch("axb", 0, 1, dims=[1000, 2, 0], width=width)] * 3
        piece = runner.piece(steps, slots=2, threads=3)
        for _ in range(20):
            y.zero_()
            piece([x, y])
            assert torch.equal(y, 2 * x)


def test_two_threads_of_python_run_two_pieces(runner: Runner, launch: Make) -> None:
    """One of them has the helpers; the other works alone, and both are right."""
    steps = dependent_steps(launch, 300, seed=5)
    start = normal(33)
    wanted = [start.clone(), torch.zeros(33)]
    runner.piece(steps, slots=2)(wanted)
    wrong: list[int] = []

    def repeat() -> None:
        piece = runner.piece(steps, slots=2, threads=2)
        for i in range(100):
            mine = [start.clone(), torch.zeros(33)]
            piece(mine)
            if not torch.equal(mine[0], wanted[0]):
                wrong.append(i)

    threads = [threading.Thread(target=repeat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is no core to keep off")
def test_helpers_keep_off_the_callers_core(runner: Runner, launch: Make) -> None:
    """Wherever the caller is, and though it may itself be bound to one core."""
    allowed = os.sched_getaffinity(0)
    x, y = normal(100), torch.zeros(100)
    piece = runner.piece([launch("axb", 0, 1, dims=[100, 2, 0], width=4)] * 5, slots=2, threads=2)
    piece([x, y])  # starts a helper where none is
    try:
        for core in sorted(allowed)[:2]:
            os.sched_setaffinity(0, {core})
            time.sleep(0.1)  # until helpers sleep: they are bound when they are woken
            y.zero_()
            piece([x, y])
            assert torch.equal(y, 2 * x)
            others = tasks() - {str(os.getpid())}
            assert allowed - {core} in [os.sched_getaffinity(int(task)) for task in others]
            os.sched_setaffinity(0, allowed)
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_forked_child_starts_helpers_of_its_own(runner: Runner, launch: Make) -> None:
    x, y = normal(100), torch.zeros(100)
    piece = runner.piece([launch("axb", 0, 1, dims=[100, 2, 0], width=4)] * 5, slots=2, threads=3)
    piece([x, y])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, from 3.12 on
        child = os.fork()
    if child == 0:
        y.zero_()
        for _ in range(100):
            piece([x, y])
        os._exit(0 if bool((y == 2 * x).all()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
