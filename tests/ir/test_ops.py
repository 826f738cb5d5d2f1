"""Every declared op: its text round-trips, and `infer` says what `reference` gives."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseline.ir.core import OPS
from fuseline.ir.evaluate import bind, evaluate
from fuseline.ir.ops.raised import attention_mask
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import substitute
from fuseline.ir.verify import verify
from tests.ir.op_cases import CASES, Case, op_cases

SHIPPED = sorted(name for name, op in OPS.items() if op.__module__.startswith("fuseline."))
PROPERTY = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_every_op_has_a_case() -> None:
    assert sorted(CASES) == SHIPPED, "write a case in tests.ir.cases for each op, and for no other"


@pytest.mark.parametrize("name", SHIPPED)
def test_text_round_trips(name: str) -> None:
    @PROPERTY
    @given(op_cases(name))
    def check(case: Case) -> None:
        text = print_func(case.func)
        again = parse_func(text)
        verify(again)
        assert print_func(again) == text

    check()


@pytest.mark.parametrize("name", SHIPPED)
def test_infer_says_what_reference_gives(name: str) -> None:
    @PROPERTY
    @given(op_cases(name))
    def check(case: Case) -> None:
        verify(case.func)
        binding = bind(case.func, case.arguments)
        results = evaluate(case.func, case.arguments)
        for value, tensor in zip(case.func.returns, results, strict=True):
            assert list(tensor.shape) == [substitute(d, binding) for d in value.shape]
            assert tensor.dtype == value.dtype.torch

    check()


@pytest.mark.parametrize("name", SHIPPED)
def test_reference_leaves_operands_alone(name: str) -> None:
    """Only buffers may change: every other operand is the same after a run."""

    @PROPERTY
    @given(op_cases(name))
    def check(case: Case) -> None:
        kept = [a.clone() for a in case.arguments if isinstance(a, torch.Tensor)]
        evaluate(case.func, case.arguments)
        written = {v for op in case.func for v in op.operands if str(v.type).startswith("buffer")}
        for arg, before, now in zip(case.func.args, kept, case.arguments, strict=True):
            if arg not in written:
                assert torch.equal(before.nan_to_num(), cast("torch.Tensor", now).nan_to_num())

    check()


@pytest.mark.parametrize("name", SHIPPED)
def test_cost_is_known_once_the_symbols_are(name: str) -> None:
    @PROPERTY
    @given(op_cases(name))
    def check(case: Case) -> None:
        binding = bind(case.func, case.arguments)
        cost = case.func.ops[0].cost()
        assert substitute(cost.bytes, binding) >= 0
        assert substitute(cost.flops, binding) >= 0

    check()


@given(st.data())
@settings(PROPERTY, max_examples=50)
def test_clone_prints_the_same(data: st.DataObject) -> None:
    case = data.draw(op_cases(data.draw(st.sampled_from(SHIPPED))))
    assert print_func(case.func.clone()) == print_func(case.func)


@pytest.mark.parametrize("positions", [None, torch.arange(0), torch.zeros(2, 0, dtype=torch.int64)])
def test_masks_of_no_queries(positions: torch.Tensor | None) -> None:
    scores = torch.zeros(2, 3, 0, 5)
    assert attention_mask(scores, None, positions, causal=True, window=2).shape == scores.shape
