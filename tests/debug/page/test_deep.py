"""Pages of deep models: of thousands of ops, and still small and soon written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import fuseline
from fuseline.debug.page.look import Look
from fuseline.debug.page.observe import Watch
from fuseline.debug.page.page import page_at
from fuseline.debug.page.program import Program
from tests.e2e.families import tokens

pytestmark = [
    pytest.mark.slow,
    # transformers asks its version through a cached function while it is traced.
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
]


def deep(layers: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
    )
    return cast("Any", Qwen3ForCausalLM(config)).eval()


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were spent on pages, in the places where that is done."""
    spent: list[float] = []

    def timed(kind: type, name: str) -> None:
        own: Callable[..., Any] = getattr(kind, name)

        def call(*given: Any) -> Any:
            started = time.perf_counter()
            result = own(*given)
            spent.append(time.perf_counter() - started)
            return result

        monkeypatch.setattr(kind, name, call)

    for name in ("start", "passed", "made"):
        timed(Program, name)
    for name in ("before_pass", "after_pass"):
        timed(Watch, name)
    timed(Look, "write")
    return spent


@pytest.mark.parametrize(("layers", "ops", "megabytes"), [(30, 2000, 3), (72, 5000, 7)])
def test_a_deep_model_has_a_small_page(
    layers: int, ops: int, megabytes: int, tmp_path: Path, collecting: list[float]
) -> None:
    """1.9 MB in 0.6 s for 30 layers; 4.1 MB in 1.3 s for 5,100 ops, which compile in 19 s."""
    torch.compiler.reset()
    path = tmp_path / "report.html"
    model: Any = fuseline.compile(deep(layers), html=path, dynamic=True)
    with torch.no_grad():
        model(input_ids=tokens(3, 9), use_cache=False)
    view = page_at(path).view()
    (program,) = view.programs
    assert len(program.graphs[0].nodes) > ops
    assert len(json.dumps(asdict(view))) < megabytes * 1e6
    assert path.stat().st_size < 2 * megabytes * 1e6
    assert sum(collecting) < 10
    found = [layer for layer in program.layers if ".layers." in layer.name]
    assert len(found) == layers
    assert len({layer.compiled for layer in found[1:]}) == 1, "layers are alike"
