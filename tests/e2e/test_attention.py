"""Attention in real models: every site is raised, and masks are gone, or kept for a true reason.

Run by the reference semantics of the ops, so that only import, clean-up and raise-attention are
judged here; `tests.e2e.test_families` judges compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fuseline.frontend.backend import Backend
from fuseline.frontend.captured import Captured
from fuseline.frontend.execute import Compiled
from fuseline.frontend.importer import import_captured
from fuseline.ir.core import Func, Op
from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.raised import Attention
from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.fold_constants import FoldConstants
from fuseline.passes.manager import PassManager
from fuseline.passes.raise_attention import RaiseAttention
from fuseline.passes.restore_mutations import RestoreMutations
from tests.e2e.families import FAMILIES, Family, static_cache, tokens

WINDOW = 8
SPELLED_OUT = (
    Family("gemma2", {"head_dim": 20, "sliding_window": WINDOW, "query_pre_attn_scalar": 20}),
    Family(
        "gpt_oss",
        {
            "hidden_size": 80,  # torch's grouped product takes rows of whole 16 bytes only
            "intermediate_size": 112,
            "head_dim": 20,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
)

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


def _cases(families: Sequence[Family], fast: str) -> list[Any]:
    """Families as parameters, all of them slow but one."""
    slow = (pytest.mark.slow,)
    return [
        pytest.param(f, id=f.model_type, marks=() if f.model_type == fast else slow)
        for f in families
    ]


def _build(family: Family, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose experts trace, and whose attention is spelled out where torch's op lacks it."""
    model = family.build(dtype)
    if "num_experts_per_tok" in family.settings:
        cast("Any", model).set_experts_implementation("grouped_mm")
    if family in SPELLED_OUT:
        cast("Any", model).set_attn_implementation("eager")
    return model


@dataclass
class Raised:
    """A compile step that keeps the funcs as raise-attention left them, and runs those."""

    funcs: list[Func] = field(default_factory=list[Func])
    details: list[list[str]] = field(default_factory=list[list[str]])

    def step(self, captured: Captured) -> Compiled:
        func = import_captured(captured)
        clean = [FoldConstants(), Canonicalize(), Cse(), Dce(), RestoreMutations(), Cse()]
        run = PassManager([*clean, RaiseAttention(), Cse(), Dce()], check=True).run(func)
        sites = [s for s in run.sites() if s.pattern == "attention"]
        assert {s.status for s in sites} == {"fused"}, [s.reason for s in sites]
        self.funcs.append(func)
        self.details.append([s.details["mask"] for s in sites])
        return lambda arguments: evaluate(func, arguments)


def _attentions(func: Func) -> list[Attention]:
    return [op for op in func.ops if isinstance(op, Attention)]


def _mask_ops(func: Func) -> list[Op]:
    """What a mask is made of; nothing else of these models compares or hides anything."""
    made = ("le", "lt", "ge", "gt", "logical_and", "bitwise_and", "where", "softmax", "sdpa")
    routers = [op for op in func.ops if op.name in made and "mlp" in str(op.loc)]
    return [op for op in func.ops if op.name in made and op not in routers]


def _compiled(model: nn.Module, raised: Raised, dynamic: bool | None = None) -> Any:
    backend = Backend(raised.step)
    return cast("Any", torch.compile)(model, backend=backend, dynamic=dynamic)


def _logits(model: Any, ids: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        return cast("Tensor", model(ids, **more).logits)


def _close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", _cases([*FAMILIES, *SPELLED_OUT], "llama"))
def test_prefill_builds_no_mask(family: Family) -> None:
    model, raised = _build(family), Raised()
    compiled = _compiled(model, raised, dynamic=True)
    for shape in ((2, 11), (3, 13)):
        ids = tokens(*shape)
        _close(_logits(compiled, ids, use_cache=False), _logits(model, ids, use_cache=False))
    (func,) = raised.funcs
    assert not _mask_ops(func)
    for op in _attentions(func):
        assert (op.mask, op.positions, op.causal) == (None, None, True)
    sliding = "sliding_window" in family.settings
    assert {op.window for op in _attentions(func)} == ({None, WINDOW} if sliding else {None})


@pytest.mark.parametrize("family", _cases([*FAMILIES, *SPELLED_OUT], "gemma3_text"))
def test_decode_over_a_static_cache_builds_no_mask(family: Family) -> None:
    """Ten steps from position 3: sliding caches run full on the way, and roll from then on."""
    model, raised = _build(family), Raised()
    compiled = _compiled(model, raised)
    ours, theirs = static_cache(model), static_cache(model)
    for cache in (ours, theirs):
        _logits(model, tokens(2, 3), past_key_values=cache)
    for step in range(10):
        ids = tokens(2, 1, seed=step)
        got = _logits(compiled, ids, past_key_values=ours)
        _close(got, _logits(model, ids, past_key_values=theirs))
    assert raised.funcs
    for func in raised.funcs:
        assert not _mask_ops(func)
        assert all(op.mask is None for op in _attentions(func))
        grouped = {op.k.shape[1] != op.q.shape[1] for op in _attentions(func)}
        assert grouped == {family.model_type != "phi"}


def _padded(length: int, hidden: int) -> Tensor:
    """An attention mask that hides the first tokens of the first row."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :hidden] = 0
    return mask


@pytest.mark.parametrize("family", _cases(FAMILIES, "llama"))
def test_padding_is_all_that_stays_of_a_mask(family: Family) -> None:
    model, raised = _build(family), Raised()
    compiled = _compiled(model, raised, dynamic=True)
    ids, mask = tokens(2, 13), _padded(13, 3)
    got = _logits(compiled, ids, attention_mask=mask, use_cache=False)
    _close(got, _logits(model, ids, attention_mask=mask, use_cache=False))
    (func,) = raised.funcs
    for op in _attentions(func):
        assert op.causal
        assert op.mask is not None
        assert op.mask.shape[1:3] == (1, 1)
    assert all("attention_mask[b, k] != 0" in text for text in raised.details[0])
    assert not _mask_ops(func)


@pytest.mark.parametrize("family", _cases(SPELLED_OUT, "gpt_oss"))
def test_padding_of_finite_masks(family: Family) -> None:
    """Sinks take the weight of a row that sees no key; without them the mask stays as it is."""
    model, raised = _build(family), Raised()
    compiled = _compiled(model, raised, dynamic=True)
    ids, mask = tokens(2, 13), _padded(13, 3)
    got = _logits(compiled, ids, attention_mask=mask, use_cache=False)
    _close(got, _logits(model, ids, attention_mask=mask, use_cache=False))
    (func,) = raised.funcs
    has_sinks = family.model_type == "gpt_oss"
    assert all(op.causal is has_sinks for op in _attentions(func))
    assert all(("a row may see no key" in text) is not has_sinks for text in raised.details[0])


@pytest.mark.slow
def test_chunks_of_a_prompt_over_a_sliding_cache() -> None:
    """Longer than the window, one token, and several at once: each phase traces differently."""
    family = next(f for f in FAMILIES if f.model_type == "gemma3_text")
    model, raised = _build(family), Raised()
    compiled = _compiled(model, raised)
    ours, theirs = static_cache(model), static_cache(model)
    config = cast("Any", model).config
    for cache in (ours, theirs):
        width = config.head_dim
        heads = config.num_key_value_heads
        cache.early_initialization(2, heads, width, torch.float32, torch.device("cpu"))
    for length in (11, 1, 1, 4, 1, 3):
        ids = tokens(2, length, seed=length)
        got = _logits(compiled, ids, past_key_values=ours)
        _close(got, _logits(model, ids, past_key_values=theirs))
    assert all(not _mask_ops(func) for func in raised.funcs)
    windows = {op.window for func in raised.funcs for op in _attentions(func)}
    assert windows == {None, WINDOW}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("family", _cases(SPELLED_OUT, ""))
def test_half_precision_has_the_same_structure(family: Family, dtype: torch.dtype) -> None:
    model, raised = _build(family, dtype), Raised()
    compiled = _compiled(model, raised, dynamic=True)
    ids = tokens(2, 11)
    got = _logits(compiled, ids, use_cache=False).double()
    want = _logits(model, ids, use_cache=False).double()
    assert float((got - want).square().sum()) <= 0.05**2 * float(want.square().sum())
    (func,) = raised.funcs
    assert not _mask_ops(func)
    assert len(_attentions(func)) == 2
