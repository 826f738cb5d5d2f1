"""A Qwen3 with an adapter for each request: prefill, decode, and what was fused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseline
from examples import adapters
from examples.adapters import Adapted
from fuseline.debug.oracle import oracle
from tests.e2e.families import FAMILIES, static_cache, tokens
from tests.e2e.harness import DTYPES, QUIET, assert_numbers_rule, report_of

pytestmark = [QUIET, pytest.mark.timeout(1800)]

QWEN3 = next(f for f in FAMILIES if f.model_type == "qwen3")
PROMPTS = ([2, 0], [1, 1], [-1, -1], [-1, 1])
"""Adapters of two requests: other ones, the same one, none, and one without."""


def adapted(dtype: torch.dtype) -> Adapted:
    """A model at odd sizes, with three adapters of rank 5."""
    model = QWEN3.build(torch.float32)
    return Adapted(model, count=3, rank=5).to(dtype).eval()


def generate(model: nn.Module, own: Any, ids: Tensor, steps: int) -> list[Tensor]:
    """Logits of a prompt, then of single tokens, through a static cache."""
    cache = static_cache(own.model)
    inputs = [tokens(2, 7), *(tokens(2, 1, seed=step) for step in range(steps))]
    return [model(each, ids, past_key_values=cache) for each in inputs]


def exactly(model: Adapted, ids: Tensor, steps: int) -> list[Tensor]:
    """The same in float64."""
    wide = copy.deepcopy(model).double()
    return oracle(lambda: generate(wide, wide, ids, steps))


def assert_all_fused(model: nn.Module, layers: int = 2, *, gpu: bool = False) -> None:
    """Every linear's adapters are one op with a kernel, beside base linears that are merged, on a
    GPU with the norm in front of them.
    """
    report = report_of(model)
    assert not [s for s in report.sites if s.status == "missed"], report
    programs = int(report.stats.get("programs", 1))
    assert report.count("multi_lora") == 7 * layers * programs, report
    joined = report.count("norm_linear") - (programs if gpu else 0)  # that of the last norm
    assert report.count("merged_linear") + joined == 2 * layers * programs, report
    assert not [(k.op, k.reason) for k in report.kernels if k.status == "reference"]


@DTYPES
def test_prefill_and_decode(dtype: torch.dtype) -> None:
    model = adapted(dtype)
    compiled = fuseline.compile(model, verify=True)
    with torch.no_grad():
        for numbers in PROMPTS:
            ids = torch.tensor(numbers)
            eager = generate(model, model, ids, 2)
            exact = exactly(model, ids, 2)
            found = generate(compiled, model, ids, 2)
            for ours, theirs, truth in zip(found, eager, exact, strict=True):
                assert_numbers_rule(ours, theirs, truth)
    assert_all_fused(compiled)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.filterwarnings("ignore:FL1005:fuseline.errors.FuselineWarning")
def test_every_op_has_a_kernel_for_a_gpu(target: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    model = adapted(torch.bfloat16)
    compiled = fuseline.compile(model, target=target)
    ids = torch.tensor([1, -1])
    with torch.no_grad():
        eager = generate(model, model, ids, 1)
        exact = exactly(model, ids, 1)
        found = generate(compiled, model, ids, 1)
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        assert_numbers_rule(ours, theirs, truth)
    assert_all_fused(compiled, gpu=True)


def test_a_number_that_no_adapter_has_is_an_error() -> None:
    model = adapted(torch.float32)
    compiled = fuseline.compile(model)
    with torch.no_grad():
        compiled(tokens(2, 7), torch.tensor([2, 0]), use_cache=False)
        for run in (model, compiled):
            with pytest.raises(IndexError):
                run(tokens(2, 7), torch.tensor([3, 0]), use_cache=False)


@pytest.mark.slow
def test_the_example_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert adapters.main(["--requests", "4"]) == 0
    assert "14 products fused" in capsys.readouterr().out
