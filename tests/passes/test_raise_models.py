"""Whole models: norms, rotations and gated MLPs are raised, and caches are written in place.

Values are compared under the reference semantics. They are equal to the bit in most cases, but a
library sums in another order where a value lies otherwise in memory.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.debug.oracle import relative_error
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.fold_constants import FoldConstants
from fuseline.passes.raise_gated_mlp import RaiseGatedMlp
from fuseline.passes.raise_layer_norm import RaiseLayerNorm
from fuseline.passes.raise_rms_norm import RaiseRmsNorm
from fuseline.passes.raise_rope import RaiseRope
from fuseline.passes.record import Run
from fuseline.passes.restore_mutations import RestoreMutations
from fuseline.testing import make_arguments, make_binding, run_passes
from tests.e2e.families import FAMILIES, Family, static_cache, tokens
from tests.frontend.helpers import record

NORMS = {"llama": 5, "gemma3_text": 13, "cohere": 7, "phi": 7}  # of two layers; others have 9
MLPS = {"phi": 0, "qwen3_moe": 0}  # others have one a layer
LEFT = ("mean", "rsqrt", "pow", "neg", "silu", "index_copy")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
FAMILY = {family.model_type: family for family in FAMILIES}
# transformers asks its version through a cached function while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


def raised(func: Func) -> Run:
    """The clean-up and raising passes of the pipeline, less those of attention."""
    clean = [FoldConstants(), Canonicalize(), Cse(), Dce(), RestoreMutations()]
    norms = [RaiseLayerNorm(), RaiseRmsNorm(), RaiseRope(), RaiseGatedMlp()]
    return run_passes([*clean, *norms, Cse(), Dce()], func)


def imported(model: torch.nn.Module, dynamic: bool, **inputs: Any) -> Func:
    """The func of one call of a model."""
    compiled, recording = record(model, dynamic=dynamic)
    with torch.no_grad():
        compiled(**inputs)
    (func,) = recording.funcs
    return func


def prefill(family: Family, dtype: torch.dtype) -> Func:
    """A call without a cache, of any batch and length."""
    return imported(family.build(dtype), True, input_ids=tokens(3, 7), use_cache=False)


def decode(family: Family, dtype: torch.dtype) -> Func:
    """One step on a static cache, behind a short prefill."""
    model = family.build(dtype)
    cache = static_cache(model)
    with torch.no_grad():
        model(input_ids=tokens(2, 5), past_key_values=cache, use_cache=True)
    step = {"input_ids": tokens(2, 1), "past_key_values": cache, "use_cache": True}
    return imported(model, False, **step)


def check(family: Family, func: Func, *, writes: int) -> None:
    """Every place is raised with nothing left over, and the values are the same."""
    before = func.clone()
    run = raised(func)
    count = Counter(op.name for op in func)
    kind, other = family.model_type, family.model_type == "qwen3_moe"
    assert count["rms_norm"] + count["layer_norm"] == NORMS.get(kind, 9)
    assert count["rope"] == 4
    assert count["gated_mlp"] == MLPS.get(kind, 2)
    assert count["index_write"] == writes
    assert {name: count[name] for name in LEFT if count[name]} == ({"silu": 2} if other else {})
    assert not [site for site in run.sites() if site.status == "missed"]
    whole = {op.operands[0].shape for op in func if op.name == "write"}
    assert whole <= {()}, "only counters are written whole"
    inputs = {"cumulative_length": torch.tensor(5)}
    given = {a.hint: v for a in before.args for n, v in inputs.items() if a.hint.endswith(n)}
    for smallest in (False, True):
        binding = make_binding(before, smallest=smallest)
        arguments = make_arguments(before, binding, given=given)
        own = [[a.clone() if isinstance(a, Tensor) else a for a in arguments] for _ in range(2)]
        want, got = evaluate(before, own[0]), evaluate(func, own[1])
        for one, other in zip(want, got, strict=True):
            assert relative_error(other, one) < 16 * torch.finfo(one.dtype).eps


def test_prefill() -> None:
    family = FAMILY["qwen3"]
    check(family, prefill(family, torch.bfloat16), writes=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILY)
def test_prefill_of_every_family(name: str, dtype: str) -> None:
    check(FAMILY[name], prefill(FAMILY[name], DTYPES[dtype]), writes=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILY)
def test_decode_of_every_family(name: str, dtype: str) -> None:
    check(FAMILY[name], decode(FAMILY[name], DTYPES[dtype]), writes=4)
