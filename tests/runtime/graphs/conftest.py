"""What the tests of graphs share: programs for the CPU, run from its recorder of graphs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest

from fuseline.assemble import with_padding
from fuseline.build import Tools, build
from fuseline.compilation import Compilation
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.ir.text import parse_func
from fuseline.runtime.executor import Program
from fuseline.runtime.graphs import Graphed
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.native import Runner
from fuseline.runtime.plan import Plan
from tests.runtime.graphs.cpu_recorder import CpuRecorder

Made: TypeAlias = tuple[Program, CpuRecorder, Graphed]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return Tools.find(Config(cache_dir=tmp_path_factory.mktemp("cache")))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Graphed]:
    """Programs for the CPU run from its recorder, as those for a GPU from graphs."""
    made: list[Graphed] = []

    def graphed(self: Compiler, program: Program, compilation: Compilation) -> Any:
        plan = with_padding(program.plan, compilation.func)
        runner = program._runner  # pyright: ignore[reportPrivateUsage]
        made.append(Graphed(Program(plan, runner, program.kernels), CpuRecorder()))
        compilation.graphed = weakref.ref(made[-1])
        return made[-1]

    monkeypatch.setattr(Compiler, "_graphed", graphed)
    return made


def graphed(
    tools: Tools,
    text: str,
    refuse: Sequence[str] = (),
    *,
    change: Callable[[Plan], Plan] | None = None,
    **options: Any,
) -> Made:
    """A program of IR text, and the same run from recordings; ``change`` edits its plan."""
    func = parse_func(text)
    built = build(func, {}, tools)
    assert tools.toolchain is not None
    runner = Runner.open(tools.cache, tools.toolchain)
    plan = with_padding(built.assembled.plan, func)
    plan = plan if change is None else change(plan)
    program = Program(plan, runner, HostKernels(built.addresses))
    recorder = CpuRecorder(refuse)
    return program, recorder, Graphed(program, recorder, **options)
