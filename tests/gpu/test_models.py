"""Whole models on a GPU against eager there: prefill, decode over a static cache, under graphs."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.debug.oracle import oracle
from tests.e2e.families import FAMILIES, Family, static_cache, tokens
from tests.e2e.harness import QUIET, assert_numbers_rule, logits, report_of

pytestmark = QUIET

OPTIONS: dict[str, Any] = {"tune": "off"}
"""What is measured is another test's matter, and takes most of the time."""

STEPS = 12
"""Single tokens: the first is plain, the second recorded, the others replayed."""

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"]
)
EACH = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.model_type)


def generate(model: nn.Module, cache: Any) -> list[Tensor]:
    """Logits of a prompt, then of single tokens, through a static cache."""
    device = next(model.parameters()).device
    inputs = [tokens(2, 7), *(tokens(2, 1, seed=step) for step in range(STEPS))]
    return [logits(model(ids.to(device), past_key_values=cache)) for ids in inputs]


def assert_decodes(compiled: nn.Module, model: nn.Module) -> None:
    """Prompt and steps are as near to the oracle as eager's."""
    with torch.no_grad():
        eager = generate(model, static_cache(model))
        wide = copy.deepcopy(model).double()
        exact = oracle(lambda: generate(wide, static_cache(wide)))
        found = generate(compiled, static_cache(model))
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        assert_numbers_rule(ours, theirs, truth)


def assert_native(model: nn.Module) -> None:
    """Nothing of ours runs by its reference."""
    plain = [k for k in report_of(model).kernels if k.status == "reference"]
    assert not [(k.op, k.reason) for k in plain]


@EACH
@DTYPES
def test_prefill_of_any_batch_and_length(family: Family, dtype: torch.dtype) -> None:
    model = family.build(dtype).cuda()
    compiled = fuseline.compile(model, dynamic=True, **OPTIONS)
    with torch.no_grad():
        for shape in ((2, 7), (3, 13), (1, 1), (1, 29)):
            for _ in range(3):  # plain, recorded, replayed
                ids = tokens(*shape, seed=sum(shape)).cuda()
                eager = logits(model(ids, use_cache=False))
                exact = logits(oracle(model, ids, use_cache=False))
                assert_numbers_rule(logits(compiled(ids, use_cache=False)), eager, exact)
    assert_native(compiled)


@EACH
@DTYPES
@pytest.mark.parametrize("graphs", ["none", "piecewise"])
def test_static_cache_decode(family: Family, dtype: torch.dtype, graphs: str) -> None:
    model = family.build(dtype).cuda()
    compiled = fuseline.compile(model, graphs=graphs, **OPTIONS)
    assert_decodes(compiled, model)
    assert_native(compiled)
    recorded = cast("int", report_of(compiled).stats.get("graphs recorded", 0))
    assert (recorded > 0) == (graphs == "piecewise")


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_moe"])
def test_a_tuned_model(model_type: str) -> None:
    """Whatever is measured fastest gives the same numbers."""
    family = next(f for f in FAMILIES if f.model_type == model_type)
    model = family.build(torch.bfloat16).cuda()
    compiled = fuseline.compile(model)
    assert_decodes(compiled, model)
    measured = [c for k in report_of(compiled).kernels for c in k.choices if c.by == "measurement"]
    assert measured
    options = [o for c in measured for o in c.options if o.label != "plain torch"]
    failed = [o for o in options if o.microseconds is None]
    assert not failed
