"""Experts of transformers models are traced in a form without a loop, whatever the model says."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from fuseline.frontend.export import capture_export
from tests.e2e.families import Family, tokens
from tests.frontend.helpers import record

SIZES = {
    "hidden_size": 88,
    "head_dim": 20,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 1,
}
# transformers asks its version through a cached function while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


def looping(dtype: torch.dtype, **sizes: int) -> nn.Module:
    """A model whose experts are a loop over those that were chosen."""
    model = Family("qwen3_moe", SIZES | sizes).build(dtype)
    cast("Any", model).set_experts_implementation("eager")
    return model


def implementation(model: nn.Module) -> str:
    """What the model's configuration says."""
    return cast("Any", model).config._experts_implementation


@pytest.mark.parametrize(
    ("dtype", "width", "grouped"),
    [
        (torch.float32, 40, True),
        pytest.param(torch.bfloat16, 37, False, marks=pytest.mark.slow),  # rows of 74 bytes
    ],
)
def test_a_loop_over_experts_is_traced_whole(dtype: torch.dtype, width: int, grouped: bool) -> None:
    """One graph, the numbers of the loop, and the loop again afterwards."""
    model = looping(dtype, moe_intermediate_size=width)
    compiled, recording = record(model)
    atol = 3e-2 if dtype is torch.bfloat16 else 1e-5
    with torch.no_grad():
        for count in (7, 4):
            ids = tokens(2, count)
            want = cast("Any", model)(input_ids=ids, use_cache=False).logits
            assert implementation(model) == "eager"
            got = compiled(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(got, want, atol=atol, rtol=1e-2)
    (func,) = recording.funcs
    assert any(op.name == "grouped_matmul" for op in func) == grouped
    assert implementation(model) == "eager"


@pytest.mark.slow
def test_a_loop_over_experts_is_exported() -> None:
    model = looping(torch.float32)
    capture_export(model, (tokens(2, 5),), {"use_cache": False})
    assert implementation(model) == "eager"


def test_an_error_leaves_the_configuration_as_it_was() -> None:
    model = looping(torch.float32)
    compiled, _ = record(model)
    with pytest.raises(Exception, match="input_ids"):
        compiled()
    assert implementation(model) == "eager"
