"""Programs: memory for what runs and no more, bindings by their last use, threads and forks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.compiler import Compiler
from fuseline.frontend.wrap import program_of
from fuseline.runtime import executor
from fuseline.runtime.executor import Program
from fuseline.runtime.native import MOST_SHARES
from fuseline.runtime.plan import Step


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    torch.compiler.reset()
    with torch.no_grad():
        yield


def net(width: int = 44) -> nn.Module:
    cast("Any", torch).manual_seed(3)
    return nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 21, bias=False)).eval()


def rows(count: int, width: int = 44) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def compiled_net(**options: Any) -> tuple[Any, nn.Module]:
    model = net()
    return fuseline.compile(model, dynamic=True, reuse=False, **options), model


def program_in(compiled: Any) -> Program:
    """The one program of a compiled module."""
    (done,) = cast("Compiler", program_of(compiled).engine.step).done
    program = done.program() if done.program else None
    assert program is not None
    return program


def test_scratch_is_that_of_the_kernels_that_run() -> None:
    """The kernel for few tokens needs scratch for each, and is not the one that runs here."""
    compiled, model = compiled_net(threads=16)
    sizes: list[int] = []
    for count in (1000, 5000):
        torch.testing.assert_close(compiled(rows(count)), model(rows(count)))
        sizes.append(program_in(compiled).arena_bytes)
    normed = (5000 - 1000) * 44 * 4
    assert sizes[1] - sizes[0] <= normed + 64


def test_no_more_workers_are_planned_for_than_there_can_be() -> None:
    sizes: list[int] = []
    for threads in (MOST_SHARES, 100 * MOST_SHARES):
        torch.compiler.reset()
        compiled, _ = compiled_net(threads=threads)
        compiled(rows(700))
        sizes.append(program_in(compiled).arena_bytes)
    assert sizes[0] == sizes[1]


def test_the_number_of_shares_is_that_of_the_runner() -> None:
    header = Path(executor.__file__).parent / "native" / "fuseline_abi.h"
    assert f"#define FL_MAX_SHARES {MOST_SHARES} " in header.read_text()


def test_the_binding_unused_for_longest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "MAX_BINDINGS", 3)
    compiled, model = compiled_net()
    bind, made = cast("Any", Program)._bind, list[tuple[int, ...]]()

    def counted(self: Program, key: tuple[int, ...], single: bool) -> Any:
        made.append(key)
        return bind(self, key, single)

    monkeypatch.setattr(Program, "_bind", counted)
    for count in (5, 6, 7, 8, 9):
        for size in (4, count):  # 4 is used again and again
            torch.testing.assert_close(compiled(rows(size)), model(rows(size)))
    assert made.count((4,)) == 1
    compiled(rows(5))
    assert made.count((5,)) == 2


def test_steps_one_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What watches a call step by step sees each once, in order, and changes nothing."""
    compiled, _ = compiled_net()
    run, calls, seen = Program.run, list[Any](), list[str]()

    def noted(self: Program, key: tuple[int, ...], given: Any) -> list[Tensor]:
        calls.append(given)
        return run(self, key, given)

    @contextmanager
    def around(step: Step) -> Generator[None]:
        seen.append(step.label)
        yield
        seen.append(f"end of {step.label}")

    monkeypatch.setattr(Program, "run", noted)
    expected = compiled(rows(5))
    program = program_in(compiled)
    (found,) = program.run_stepwise(calls[0], around)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert seen[1::2] == [f"end of {label}" for label in seen[::2]]
    assert seen[::2] == ["rms_norm", "linear"]


class Siblings(nn.Module):
    """Three products of the same rows, whose weights are packed."""

    def __init__(self) -> None:
        super().__init__()
        cast("Any", torch).manual_seed(4)
        self.a, self.b, self.c = (nn.Linear(24, 40, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.a(x), self.b(x), self.c(x)


def test_threads_may_pack_and_call_at_once() -> None:
    model = Siblings()
    compiled: Any = fuseline.compile(model, dynamic=True)
    x = rows(9, 24)
    compiled(x)
    wrong: list[int] = []
    for number in range(20):
        for part in (model.a, model.b, model.c):
            part.weight.data = part.weight.detach() * 1.01  # packed no longer
        want, barrier = model(x), threading.Barrier(4)

        def call(number: int = number, want: Any = want, barrier: Any = barrier) -> None:
            barrier.wait()
            with torch.no_grad():
                found = compiled(x)
            if not all(torch.allclose(f, w, atol=1e-5) for f, w in zip(found, want, strict=True)):
                wrong.append(number)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_child_forked_during_a_call_can_call(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, model = compiled_net()
    x = rows(9)
    expected = model(x)
    compiled(x)
    inside, leave = threading.Event(), threading.Event()
    run = cast("Any", Program)._run

    def slow(self: Program, *given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            leave.wait(60)
        return run(self, *given)

    monkeypatch.setattr(Program, "_run", slow)

    def call() -> None:
        with torch.no_grad():
            compiled(x)

    thread = threading.Thread(target=call)
    thread.start()
    assert inside.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, from 3.12 on
        child = os.fork()
    if child == 0:
        os._exit(0 if torch.allclose(compiled(x), expected, atol=1e-5) else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
