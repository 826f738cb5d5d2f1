"""Experts of whole models become one op in each block, with the values of the traced form."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fuseline.debug.oracle import relative_error
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.experts import Experts
from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.fold_constants import FoldConstants
from fuseline.passes.raise_experts import RaiseExperts
from fuseline.passes.restore_mutations import RestoreMutations
from fuseline.testing import make_arguments, make_binding, run_passes
from tests.e2e.families import Family, static_cache, tokens
from tests.passes.test_raise_models import imported

# transformers asks its version through a cached function while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")

ATTENTION = {"hidden_size": 88, "head_dim": 20, "num_hidden_layers": 1}
CHOICE = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
MLA = {
    "hidden_size": 88,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LOCAL = {"num_local_experts": 5, "intermediate_size": 40}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": ATTENTION | CHOICE | {"num_experts": 5},
    "mixtral": ATTENTION | CHOICE | LOCAL,
    "qwen2_moe": ATTENTION | CHOICE | {"num_experts": 5, "shared_expert_intermediate_size": 56},
    "deepseek_v2": MLA | CHOICE | {"q_lora_rank": None},
    "deepseek_v3": MLA | CHOICE | {"q_lora_rank": 28, "n_group": 2, "topk_group": 1},
    "minimax_m2": ATTENTION | CHOICE | LOCAL | {"rotary_dim": 8},
    "glm4_moe": ATTENTION
    | CHOICE
    | {
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 0,
    },
    "gpt_oss": ATTENTION | CHOICE | LOCAL | {"sliding_window": 8},
    "granitemoeshared": ATTENTION | CHOICE | LOCAL | {"shared_intermediate_size": 56},
    "llama4_text": ATTENTION
    | CHOICE
    | LOCAL
    | {
        "intermediate_size_mlp": 56,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 16,
    },
    "nemotron_h": ATTENTION
    | CHOICE
    | {
        "layers_block_type": ["moe"],
        "hybrid_override_pattern": "E",
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_shared_expert_intermediate_size": 56,
        "moe_latent_size": 32,
    },
}
DENSE = ("llama4_text",)
STATELESS = ("nemotron_h",)  # its one layer has no attention
FORM = ("grouped_matmul", "sort", "index_put", "aten.call", "scatter")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def captured(name: str, dtype: torch.dtype, form: str, step: bool) -> Func:
    """The cleaned func of a prefill of any size, or of one decode step."""
    model = Family(name, MODELS[name]).build(dtype)
    if name not in DENSE:
        cast("Any", model).set_experts_implementation(form)
    if not step:
        func = imported(model, True, input_ids=tokens(3, 7), use_cache=False)
    elif name in STATELESS:
        func = imported(model, False, input_ids=tokens(2, 1), use_cache=False)
    else:
        cache = static_cache(model)
        with torch.no_grad():
            model(input_ids=tokens(2, 5), past_key_values=cache, use_cache=True)
        inputs = {"past_key_values": cache, "use_cache": True}
        func = imported(model, False, input_ids=tokens(2, 1), **inputs)
    clean = [FoldConstants(), Canonicalize(), Cse(), Dce(), RestoreMutations(), Cse()]
    run_passes(clean, func)
    return func


def counts(func: Func) -> Counter[str]:
    """How many ops of the traced forms there are."""
    found = Counter(op.name for op in func)
    return Counter({name: found[name] for name in FORM if found[name]})


def check(name: str, dtype: torch.dtype, form: str, *, step: bool) -> None:
    """One op, nothing of the old form, the same values."""
    func = captured(name, dtype, form, step)
    before = func.clone()
    run = run_passes([RaiseExperts(), Cse(), Dce()], func)
    (op,) = [op for op in func if isinstance(op, Experts)]
    (site,) = [site for site in run.sites() if site.pattern == "moe"]
    assert site.status == "fused"
    assert op.dtype is op.x.dtype
    sorts = 1 if name in ("deepseek_v3", "glm4_moe", "nemotron_h") else 0  # the groups' mask
    assert counts(func) == (Counter(scatter=1) if sorts else Counter())
    given = {a.hint: torch.tensor(5) for a in before.args if a.hint.endswith("cumulative_length")}
    for smallest in (False, True):
        arguments = make_arguments(before, make_binding(before, smallest=smallest), given=given)
        own = [[a.clone() if isinstance(a, Tensor) else a for a in arguments] for _ in range(2)]
        want, got = evaluate(before, own[0]), evaluate(func, own[1])
        for one, other in zip(want, got, strict=True):
            if form == "grouped_mm" and name not in DENSE:  # the same products of the same rows
                assert torch.equal(one, other)
            assert relative_error(other, one) < 4 * torch.finfo(one.dtype).eps


def test_one_model() -> None:
    check("qwen2_moe", torch.bfloat16, "grouped_mm", step=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_prefill_of_every_model(name: str, form: str, dtype: str) -> None:
    check(name, DTYPES[dtype], form, step=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_decode_of_every_model(name: str, form: str, dtype: str) -> None:
    check(name, DTYPES[dtype], form, step=True)
