"""A compilation may stop after any rewrite: what is left compiles, and is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fuseline.captures import Graph, capture
from fuseline.config import Config
from fuseline.debug.seeded import is_buffer
from fuseline.debug.trial import Trial
from fuseline.passes.gate import NONE
from fuseline.replay import Numbers, Replay
from tests.e2e.families import FAMILIES, static_cache, tokens

TESTED = ("llama", "gemma3_text", "qwen3_moe")


def _model(name: str) -> nn.Module:
    family = next(f for f in FAMILIES if f.model_type == name)
    torch.compiler.reset()
    return family.build(torch.float32)


def _replay(graph: Graph) -> Replay:
    config = Config()
    case = graph.case(config)
    return Replay(case, config, graph.arguments or case.arguments())


def _every_limit(graphs: list[Graph]) -> None:
    for graph in graphs:
        made = _replay(graph)
        total = len(made.record(Trial()).applied)
        assert total > 5
        for level in ("passes", "kernels"):
            check = Numbers(made, level)
            for limit in range(total + 1):
                verdict = check(Trial(limit=limit))
                assert verdict.bad is False, f"{level}, limit {limit}: {verdict.said}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TESTED)
def test_every_limit_is_right(name: str) -> None:
    graphs, _ = capture(_model(name), (tokens(1, 9),), {}, Config())
    _every_limit(graphs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_limit_of_a_step_that_writes_a_cache() -> None:
    model = _model("llama")
    cache = static_cache(model)
    given: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    with torch.no_grad():
        model(tokens(1, 5), cache_position=torch.arange(5), **given)
    given["cache_position"] = torch.tensor([5])
    graphs, _ = capture(model, (tokens(1, 1),), given, Config())
    assert any(is_buffer(arg) for graph in graphs for arg in graph.func.args)
    _every_limit(graphs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_moe"])
def test_each_rewrite_can_be_left_out_by_its_name(name: str) -> None:
    """It is not applied then, and what is left is right; the same with all but that one."""
    (graph,), _ = capture(_model(name), (tokens(1, 9),), {}, Config())
    made = _replay(graph)
    check = Numbers(made, "passes")
    record = made.record(Trial()).applied
    names = [applied.name for applied in record]
    needs = {applied.name: applied.needs for applied in record}
    assert not all(needs.values()), "some stand alone"
    assert len(set(names)) == len(names)
    for name_ in names:
        left = check(Trial(skip=(name_,)))
        assert left.bad is False, f"without {name_}: {left.said}"
        assert left.run is not None
        assert name_ not in [applied.name for applied in left.run.applied]
        alone = [applied.name for applied in made.record(Trial(only=(name_,))).applied]
        if alone != [name_]:  # there is no such place before others are applied
            earlier = tuple(names[: names.index(name_) + 1])
            assert not alone, name_
            assert name_ in [a.name for a in made.record(Trial(only=earlier)).applied]
    assert not made.record(Trial(only=(NONE,))).applied
