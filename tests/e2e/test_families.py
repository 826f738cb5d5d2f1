"""Whole models against eager and the float64 oracle: prefill of any shape, and decode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.compiler import Compilation, Compiler
from fuseline.debug.oracle import oracle, relative_error
from fuseline.frontend.wrap import program_of
from fuseline.ir.ops.buffer import Write
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.fused import Copy
from fuseline.ir.ops.index import IndexCopy, IndexPut, SliceScatter
from fuseline.report import Report
from tests.e2e.families import CONTEXT, FAMILIES, Family, static_cache, tokens

STEPS = 20
EACH = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.model_type)
DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="f32"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.slow),
    ],
)
pytestmark = pytest.mark.filterwarnings(
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"  # transformers' moe.py
)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """Models of one class do not use up one another's recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_numbers_rule(found: Tensor, eager: Tensor, exact: Tensor) -> None:
    """At most 1.5 times as far from the oracle as eager is, plus one unit in the last place."""
    own, theirs = relative_error(found, exact), relative_error(eager, exact)
    assert own <= 1.5 * theirs + torch.finfo(eager.dtype).eps, f"{own:.3g} against {theirs:.3g}"


def compilations(model: nn.Module) -> list[Compilation]:
    """What was compiled for a compiled module."""
    return cast("Compiler", program_of(cast("Any", model)).engine.step).done


def assert_explained(report: Report, family: Family, programs: int) -> None:
    """Every site of the fusions that this family must have is fused, or missed with a reason."""
    layers = 2 * programs
    assert all(site.reason for site in report.sites if site.status == "missed")
    if family.qk_norm:
        assert report.count("qk_norm", None) == layers
        assert report.count("qk_norm") == layers
    else:
        assert report.count("qk_norm", None) == 0
    assert report.count("attention") == layers
    assert report.count("merged_linear") + report.count("gated_mlp") >= layers


def assert_no_cache_copy(model: nn.Module) -> None:
    """No op of any plan moves a whole cache; filling a new one with zeros is not a copy."""
    for compilation in compilations(model):
        for op in compilation.func.ops:
            if isinstance(op, IndexCopy) and isinstance(op.x.owner, Full):
                continue  # the cache is made inside the first call
            if isinstance(op, (Write, IndexCopy, IndexPut, SliceScatter, Copy)):
                sizes = {d for v in op.operands for d in v.shape}
                assert CONTEXT not in sizes, f"{op!r} copies a cache"


def _logits(output: Any) -> Tensor:
    return cast("Tensor", output.logits)


@EACH
@DTYPES
def test_prefill_of_any_batch_and_length(family: Family, dtype: torch.dtype) -> None:
    model = family.build(dtype)
    compiled = fuseline.compile(model, dynamic=True, verify=True)
    with torch.no_grad():
        for shape in ((2, 7), (3, 13), (1, 1), (1, 29)):
            ids = tokens(*shape, seed=sum(shape))
            eager = _logits(model(ids, use_cache=False))
            exact = _logits(oracle(model, ids, use_cache=False))
            found = _logits(compiled(ids, use_cache=False))
            assert_numbers_rule(found, eager, exact)
    report = cast("Any", compiled).report()
    assert_explained(report, family, len(compilations(compiled)))


def _generate(model: Callable[..., Any], cache: Any) -> list[Tensor]:
    """Logits of a prompt, then of single tokens, through a static cache."""
    inputs = [tokens(2, 7), *(tokens(2, 1, seed=step) for step in range(STEPS))]
    return [_logits(model(ids, past_key_values=cache)) for ids in inputs]


@EACH
@DTYPES
def test_static_cache_decode(family: Family, dtype: torch.dtype) -> None:
    model = family.build(dtype)
    compiled = fuseline.compile(model, verify=True)
    with torch.no_grad():
        eager = _generate(model, static_cache(model))
        wide = copy.deepcopy(model).double()
        exact = oracle(lambda: _generate(wide, static_cache(wide)))
        found = _generate(compiled, static_cache(model))
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        assert_numbers_rule(ours, theirs, truth)
    assert_no_cache_copy(compiled)
    assert_explained(cast("Any", compiled).report(), family, len(compilations(compiled)))
