"""Whole models run from the recorder for the CPU: sizes that share recordings, against eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fuseline
from fuseline.assemble import with_padding
from fuseline.compilation import Compilation
from fuseline.compiler import Compiler
from fuseline.runtime.executor import Program
from fuseline.runtime.graphs import Graphed
from tests.e2e.families import FAMILIES, Family, tokens
from tests.e2e.harness import QUIET, logits
from tests.runtime.graphs.cpu_recorder import CpuRecorder

pytestmark = QUIET

MODELS = [f for f in FAMILIES if f.model_type in ("qwen3", "qwen3_moe", "deepseek_v3")]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Graphed]:
    """Programs for the CPU run from its recorder, as those for a GPU from graphs."""
    made: list[Graphed] = []

    def graphed(self: Compiler, program: Program, compilation: Compilation) -> Any:
        plan = with_padding(program.plan, compilation.func)
        runner = program._runner  # pyright: ignore[reportPrivateUsage]
        made.append(Graphed(Program(plan, runner, program.kernels), CpuRecorder()))
        return made[-1]

    monkeypatch.setattr(Compiler, "_graphed", graphed)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS, ids=lambda f: f.model_type)
def test_prompts_of_any_batch_and_length(family: Family, recorded: list[Graphed]) -> None:
    model = family.build(torch.float32)
    compiled = fuseline.compile(model, dynamic=True, reuse=False)
    with torch.no_grad():
        for shape in ((2, 7), (3, 5), (4, 6), (3, 8), (2, 9), (2, 13), (4, 16), (3, 6)):
            ids = tokens(*shape, seed=sum(shape))
            found = logits(compiled(ids, use_cache=False))
            want = logits(model(ids, use_cache=False))
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    run = recorded[0]
    assert not run.program.plan.unpadded
    assert [tuple(r.sizes.values()) for r in run.sizes] == [(2, 16), (4, 8)]
    assert [r.kind for r in run.sizes] == ["bucket", "bucket"]
