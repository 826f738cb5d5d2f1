"""Whole models: the imported func has the values of the graph that Dynamo found, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline import _torch
from tests.e2e.families import FAMILIES, Family, static_cache, tokens
from tests.frontend.helpers import Recording, calls, record

pytestmark = pytest.mark.filterwarnings(
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"  # transformers' moe.py
)

KEPT = {
    "qwen3_moe": {
        "aten._grouped_mm.default",
        "aten.histc.default",
        "transformers.grouped_mm_fallback.default",
    }
}
"""The calls of each family that the IR has no op for."""

ROUNDED = {"phi"}
"""Families with ``F.layer_norm``, whose reference adds in another order than torch's kernel."""


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def prepare(family: Family, dtype: torch.dtype) -> tuple[Any, Any, Any, Recording]:
    """A model, the same through Dynamo alone, the same through the IR, and what was imported."""
    model: Any = family.build(dtype)
    if family.model_type in KEPT:
        model.set_experts_implementation("grouped_mm")
    compiled, recording = record(model)
    return model, _torch.optimize(model, "eager", dynamic=True), compiled, recording


def check(family: Family, found: Tensor, expected: Tensor) -> None:
    if family.model_type in ROUNDED:
        narrow = found.dtype == torch.bfloat16
        torch.testing.assert_close(
            found, expected, rtol=1.6e-2 if narrow else 1.3e-6, atol=1e-3 if narrow else 1e-5
        )
    else:
        assert torch.equal(found, expected), (found - expected).abs().max()


def check_imports(family: Family, recording: Recording, *, graphs: int) -> None:
    assert len(recording.captured) == graphs
    assert all(c.road == "dynamo" for c in recording.captured)
    kept = {call for func in recording.funcs for call in calls(func)}
    assert kept <= KEPT.get(family.model_type, set())


CASES = [
    pytest.param(
        family,
        dtype,
        id=f"{family.model_type}-{str(dtype).removeprefix('torch.')}",
        marks=() if (family.model_type, dtype) == ("qwen3", torch.bfloat16) else pytest.mark.slow,
    )
    for family in FAMILIES
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_prefill_at_any_batch_and_length(family: Family, dtype: torch.dtype) -> None:
    _, expected, compiled, recording = prepare(family, dtype)
    for batch, length in ((2, 13), (3, 7), (2, 2)):
        ids = tokens(batch, length)
        check(
            family,
            compiled(ids, use_cache=False).logits,
            expected(ids, use_cache=False).logits,
        )
    check_imports(family, recording, graphs=1)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_decoding_in_a_static_cache(family: Family, dtype: torch.dtype) -> None:
    model, expected, compiled, recording = prepare(family, dtype)
    mine, theirs = static_cache(model), static_cache(model)
    for cache in (mine, theirs):
        model(tokens(1, 11), past_key_values=cache, use_cache=True)
    for step in range(3):
        ids = tokens(1, 1, seed=step)
        check(
            family,
            compiled(ids, past_key_values=mine, use_cache=True).logits,
            expected(ids, past_key_values=theirs, use_cache=True).logits,
        )
    for layer, other in zip(mine.layers, theirs.layers, strict=True):
        check(family, layer.keys, other.keys)
        check(family, layer.values, other.values)
    check_imports(family, recording, graphs=1)
    (func,) = recording.funcs
    written = [op for op in func.ops if op.name == "write"]
    lengths = sum(not hasattr(layer, "cumulative_length_int") for layer in mine.layers)
    assert len(written) == 2 * len(mine.layers) + lengths
