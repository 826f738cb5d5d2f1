"""Integers of a call that are only data are read from memory; others stay sizes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

import fuseline
from fuseline.arguments import Numbered
from fuseline.compilation import Compilation
from fuseline.compiler import Compiler
from fuseline.errors import InputError
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import IntType
from fuseline.passes.lift_numbers import LiftNumbers
from fuseline.runtime.executor import Program
from fuseline.runtime.graphs import Graphed
from fuseline.testing import run_passes
from tests.e2e.families import FAMILIES, static_cache, tokens
from tests.e2e.harness import QUIET, logits
from tests.runtime.graphs.cpu_recorder import CpuRecorder

VALUES = ["n", "<n + 3>", "<Max(0, n - 7)>", "<Min(9, 2*n)>", "<Max(n, 4) - Min(n, 4)>"]


def lifted(text: str) -> Func:
    func = parse_func(text)
    run_passes(LiftNumbers(), func)
    return func


@pytest.mark.parametrize("shape", ["()", "(3,)"])
@pytest.mark.parametrize("value", VALUES)
def test_arithmetic_of_sizes_is_that_of_tensors(value: str, shape: str) -> None:
    text = f"""func @f(%x: i64[3], %n: int<n>) {{
      %m = full {{value = {value}, shape = {shape}, dtype = i64}}
      %y = add %x, %m
      return %y
    }}"""
    func, x = lifted(text), torch.tensor([5, -2, 0])
    assert not func.symbols
    for n in (0, 3, 7, 11):
        (want,) = evaluate(parse_func(text), [x, n])
        (found,) = evaluate(func, [x, torch.tensor(n)])
        assert torch.equal(found, want)


@pytest.mark.parametrize(
    "text",
    [
        """func @f(%x: f32[n, 4], %n: int<n>) {
          %m = full {value = n, shape = (), dtype = i64}
          return %m
        }""",
        """func @f(%x: f32[8, 4], %n: int<n>) {
          %m = full {value = n, shape = (), dtype = i64}
          %y = slice %x {axis = 0, start = 0, stop = n}
          return %m, %y
        }""",
        """func @f(%n: int<n>, %o: int<n + 1>) {
          %m = full {value = n, shape = (), dtype = i64}
          return %m
        }""",
        """func @f(%n: int<n>) {
          %m = full {value = <n//2>, shape = (), dtype = i64}
          return %m
        }""",
        """func @f(%n: int<n>, %k: int<k>) {
          %m = full {value = <n*k>, shape = (), dtype = i64}
          return %m
        }""",
    ],
    ids=["a shape", "a slice", "another argument", "a quotient", "two numbers"],
)
def test_what_else_is_read_stays_a_size(text: str) -> None:
    func = lifted(text)
    assert [a for a in func.args if a.hint == "n" and isinstance(a.type, IntType)]
    assert "n" in func.symbols


def test_limits_are_kept_and_said() -> None:
    text = """func @f(%n: int<n>) where n in 2..7 {
      %m = full {value = n, shape = (), dtype = i64}
      return %m
    }"""
    func = lifted(text)
    assert '%n: i64[] = number "n" in 2..7)' in print_func(func)
    assert print_func(parse_func(print_func(func))) == print_func(func)


def add_number(x: Tensor, n: int) -> Tensor:
    return x + n


@pytest.mark.parametrize("wrong", [2.7, -4, 2**63, "s", None, torch.tensor(3)])
def test_what_is_no_such_number_is_refused(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is called behind guards of torch; others may call it, too."""
    made: list[Numbered] = []
    real = Numbered.__init__

    def init(self: Numbered, *given: Any) -> None:
        made.append(self)
        real(self, *given)

    monkeypatch.setattr(Numbered, "__init__", init)
    torch.compiler.reset()
    compiled = fuseline.compile(add_number, dynamic=True, reuse=False)
    x = torch.arange(6)
    for n in (5, 6):
        assert torch.equal(compiled(x, n), x + n)
    (numbered,) = made
    ((place, origin),) = numbered.numbers.items()
    given = [len(x), x]
    given.insert(place, cast("Any", wrong))
    with pytest.raises(InputError, match=f"FL0902.*expected an integer in {origin.limits}"):
        numbered(given)
    with pytest.raises(InputError, match="FL0901"):
        numbered(given[:place])


@QUIET
def test_steps_over_a_sliding_window_share_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache counts by an integer of Python, which is another one in every step."""
    made: list[Graphed] = []

    def graphed(self: Compiler, program: Program, compilation: Compilation) -> Any:
        del self, compilation
        made.append(Graphed(program, CpuRecorder()))
        return made[-1]

    monkeypatch.setattr(Compiler, "_graphed", graphed)
    model = next(f for f in FAMILIES if f.model_type == "gemma3_text").build(torch.float32)
    compiled = fuseline.compile(model, reuse=False)

    def steps(run: Any) -> list[Tensor]:
        cache = static_cache(model)
        inputs = [tokens(2, 3), *(tokens(2, 1, seed=step) for step in range(14))]
        return [logits(run(ids, past_key_values=cache)) for ids in inputs]

    with torch.no_grad():
        for found, want in zip(steps(compiled), steps(model), strict=True):
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    replays = [r.replays for run in made for r in run.sizes]
    assert sum(replays) > 8, replays


def strided(x: Tensor) -> Tensor:
    return x + x.stride(0)


def test_what_a_stride_counts_stays_a_size() -> None:
    torch.compiler.reset()
    compiled = fuseline.compile(strided, dynamic=True, reuse=False)
    for n in (5, 6, 7):
        x = torch.arange(36 * n).reshape(4, n, 9)[:, 0, :8]
        assert torch.equal(compiled(x), strided(x))
