"""The driver: what happens while kernels are built, and with programs that come from the cache."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import fuseline
from fuseline import compiler as driver
from fuseline.arguments import Packed
from fuseline.build import Tools, build
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.errors import COMPILE_FAILED, BuildError, FuselineWarning, InputError
from fuseline.frontend.backend import Backend
from fuseline.ir.text import parse_func
from fuseline.runtime.executor import Program
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.native import Runner
from fuseline.saved import SavedProgram

MERGED = SavedProgram(
    "f",
    parse_func(
        """func @f(%x: f32[2, 4] = input "x", %a: f32[3, 4] = param "a", %b: f32[5, 4] = param "b",
                %z: buffer<f32[2, 3]> = input "z") {
          %p, %q = merged_linear %x, [%a, %b], []
          write %z, %p
          return %q
        }"""
    ),
    {},
    (),
    (),
)


def doubled(x: Tensor) -> Tensor:
    return x * 2 + 1


def test_kernels_are_built_while_the_caller_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend returns before the build has ended; the first call waits for it."""
    returned, threads = threading.Event(), list[threading.Thread]()
    build = driver.build

    def build_later(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        assert returned.wait(60), "the compiler waited for its build"
        return build(*args, **kwargs)

    compile_step = Compiler.__call__

    def step(self: Compiler, captured: Any) -> Any:
        made = compile_step(self, captured)
        returned.set()
        return made

    monkeypatch.setattr(driver, "build", build_later)
    monkeypatch.setattr(Compiler, "__call__", step)
    compiled: Any = fuseline.compile(doubled, cache_dir=tmp_path, reuse=False)
    with torch.no_grad():
        found = compiled(torch.arange(3.0))
    assert found.tolist() == [1, 3, 5]
    assert [t is threading.main_thread() for t in threads] == [False]


def test_a_report_waits_for_what_is_being_built(tmp_path: Path) -> None:
    step = Compiler(Config(cache_dir=tmp_path))

    def backend(graph: Any, inputs: Any) -> Any:
        run = Backend(step)(graph, inputs)
        assert step.report().stats["native steps"] == 1
        return run

    compiled = cast("Any", torch.compile)(doubled, backend=backend)
    with torch.no_grad():
        compiled(torch.arange(3.0))
    assert step.report().stats["programs"] == 1


def test_progress_may_ask_for_the_report(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def on_progress(progress: Any) -> None:
        seen.append((progress.done, len(compiled.report().kernels)))

    compiled: Any = fuseline.compile(doubled, cache_dir=tmp_path, progress=on_progress)
    with torch.no_grad():
        compiled(torch.arange(3.0))
    assert seen == [(1, 0)]


def test_what_goes_wrong_in_a_build_comes_out_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next call builds again."""
    build, failures = driver.build, [1, 2]

    def fail(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise COMPILE_FAILED.error("a_kernel", found=f"failure {failures.pop(0)}")
        return build(*args, **kwargs)

    monkeypatch.setattr(driver, "build", fail)
    compiled: Any = fuseline.compile(doubled, cache_dir=tmp_path, reuse=False)
    with torch.no_grad():
        for number in (1, 2):
            with pytest.raises(BuildError, match=f"failure {number}"):
                compiled(torch.arange(3.0))
        assert compiled(torch.arange(3.0)).tolist() == [1, 3, 5]
    assert compiled.report().stats["graphs"] == 1


def test_a_program_is_saved_as_it_was_before_a_thread_plans_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning inserts copies; what is saved in the middle of that is no program."""
    order: list[str] = []
    to_text, build = SavedProgram.to_text, driver.build

    def text(self: SavedProgram) -> str:
        order.append("saved")
        return to_text(self)

    def built(*args: Any, **kwargs: Any) -> Any:
        order.append("built")
        return build(*args, **kwargs)

    monkeypatch.setattr(SavedProgram, "to_text", text)
    monkeypatch.setattr(driver, "build", built)
    compiled: Any = fuseline.compile(doubled, cache_dir=tmp_path)
    with torch.no_grad():
        compiled(torch.arange(3.0))
    assert order == ["saved", "built"]


def test_parameters_that_cannot_be_packed_run_op_by_op(tmp_path: Path) -> None:
    """A program from the cache may meet parameters that are parts of something else."""
    step = Compiler(Config(cache_dir=tmp_path))
    run = step.restore(MERGED.to_text())
    assert "programs" not in step.report().stats, "it was not called yet"
    generator = torch.Generator().manual_seed(0)
    both, x = torch.randn(8, 4, generator=generator), torch.randn(2, 4, generator=generator)
    a, b, z = both[5:], both[:5], torch.zeros(2, 3)
    with pytest.warns(FuselineWarning, match="FL0903 runs op by op"), torch.no_grad():
        (q,) = run((x, a, b, z))
    torch.testing.assert_close((z, q), (x @ a.T, x @ b.T))
    assert step.report().stats["programs"] == 1
    with pytest.raises(InputError, match="FL0904"):
        run((x, a, b, x.flatten()[:6].view(2, 3)))
    with pytest.raises(InputError, match="FL0902"):
        run((x[:1], a, b, z))


class Scaled(torch.nn.Module):
    """Has a number that guards look at."""

    factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.factor


def test_a_loop_may_be_rid_of_guards(tmp_path: Path) -> None:
    """As the documentation says, by torch's stance: what has changed meanwhile is not seen."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    compiled, x = fuseline.compile(Scaled(), cache_dir=folder), torch.rand(3, 8)
    with torch.no_grad():
        assert torch.equal(compiled(x), 2 * x)
        compiled.factor = 3.0
        with cast("Any", torch.compiler).set_stance(skip_guard_eval_unsafe=True):
            assert torch.equal(compiled(x), 2 * x)
        assert torch.equal(compiled(x), 3 * x)


def test_a_missing_argument_before_packed_weights_is_said(tmp_path: Path) -> None:
    """Where weights lie is looked at first: a call without them is refused as any other is."""
    func = parse_func("""func @f(%x: f32[2, 8], %a: f32[8, 8], %b: f32[4, 8]) {
      %p, %q = merged_linear %x, [%a, %b], []
      return %p, %q
    }""")
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    tools = Tools.find(Config(cache_dir=folder))
    built = build(func, {}, tools)
    assert tools.toolchain is not None
    runner = Runner.open(tools.cache, tools.toolchain)
    program = Program(built.assembled.plan, runner, HostKernels(built.addresses))
    packed = Packed(program, program, program, {})
    x = torch.randn(2, 8)
    a, b = (torch.nn.Parameter(torch.randn(n, 8), requires_grad=False) for n in (8, 4))
    torch.testing.assert_close(packed([x, a, b])[0], x @ a.t())
    with pytest.raises(InputError, match="FL0901"):
        packed([x, a])
    with pytest.raises(InputError, match="FL0902"):
        packed([x, a, cast("Any", None)])
