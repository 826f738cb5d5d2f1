"""Whole models against eager and the float64 oracle: prefill of any shape, and decode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fuseline
from fuseline.compilation import Compilation
from fuseline.compiler import Compiler
from fuseline.debug.oracle import oracle, relative_error
from fuseline.frontend.wrap import program_of
from fuseline.ir.ops.buffer import Write
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.fused import Copy
from fuseline.ir.ops.index import IndexCopy, IndexPut, SliceScatter
from fuseline.report import Report
from tests.e2e.families import CONTEXT, static_cache, tokens

DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="f32"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.slow),
    ],
)
QUIET = pytest.mark.filterwarnings(
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"  # transformers' moe.py
)


def logits(output: Any) -> Tensor:
    """Those of a transformers model's output."""
    return cast("Tensor", output.logits)


def report_of(model: nn.Module) -> Report:
    """The report of a compiled module."""
    return cast("Any", model).report()


def compilations(model: nn.Module) -> list[Compilation]:
    """What was compiled for a compiled module."""
    return cast("Compiler", program_of(cast("Any", model)).engine.step).done


def assert_numbers_rule(found: Tensor, eager: Tensor, exact: Tensor) -> None:
    """At most 1.5 times as far from the oracle as eager is, plus one unit in the last place."""
    own, theirs = relative_error(found, exact), relative_error(eager, exact)
    assert own <= 1.5 * theirs + torch.finfo(eager.dtype).eps, f"{own:.3g} against {theirs:.3g}"


def assert_no_cache_copy(model: nn.Module) -> None:
    """No op of any plan moves a whole cache; filling a new one with zeros is not a copy."""
    for compilation in compilations(model):
        for op in compilation.func.ops:
            if isinstance(op, IndexCopy) and isinstance(op.x.owner, Full):
                continue  # the cache is made inside the first call
            if isinstance(op, (Write, IndexCopy, IndexPut, SliceScatter, Copy)):
                sizes = {d for v in op.operands for d in v.shape}
                assert CONTEXT not in sizes, f"{op!r} copies a cache"


def prefilled(model: nn.Module, shapes: Iterable[tuple[int, int]]) -> nn.Module:
    """A model compiled for any batch and length, and compared at some."""
    compiled = fuseline.compile(model, dynamic=True, verify=True)
    with torch.no_grad():
        for shape in shapes:
            ids = tokens(*shape, seed=sum(shape))
            eager = logits(model(ids, use_cache=False))
            exact = logits(oracle(model, ids, use_cache=False))
            assert_numbers_rule(logits(compiled(ids, use_cache=False)), eager, exact)
    return compiled


def generate(model: Callable[..., Any], cache: Any, steps: int) -> list[Tensor]:
    """Logits of a prompt, then of single tokens, through a static cache."""
    inputs = [tokens(2, 7), *(tokens(2, 1, seed=step) for step in range(steps))]
    return [logits(model(ids, past_key_values=cache)) for ids in inputs]


def decoded(model: nn.Module, steps: int) -> nn.Module:
    """A model compiled, and compared over a prompt and single tokens."""
    compiled = fuseline.compile(model, verify=True)
    with torch.no_grad():
        eager = generate(model, static_cache(model), steps)
        wide = copy.deepcopy(model).double()
        exact = oracle(lambda: generate(wide, static_cache(wide), steps))
        found = generate(compiled, static_cache(model), steps)
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        assert_numbers_rule(ours, theirs, truth)
    return compiled
