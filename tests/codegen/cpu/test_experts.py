"""Kernels of routed experts against the op's reference, at odd sizes and in every form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.assemble import packed_operands
from fuseline.codegen.cpu.element import element
from fuseline.codegen.cpu.experts import ExpertsKernel, Part
from fuseline.codegen.cpu.experts_choice import FEW_PAIRS, choose_experts
from fuseline.codegen.lower import NeedDense, Refusal, lower
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.experts import Moe
from fuseline.ir.ops.pointwise import Add, Mul, Silu
from fuseline.ir.types import DType, TensorType, symbol
from tests.codegen.cpu.experts_cases import (
    Mixture,
    check,
    swiglu,
)
from tests.codegen.cpu.harness import build, vectors
from tests.codegen.mixture_cases import FORMS, TRANSPOSED, fields_of

DTYPES = ["f32", "bf16", pytest.param("f16", marks=pytest.mark.slow)]
MOST_SLOW = pytest.mark.parametrize(
    "dtype", ["f32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bf16", "f16"))]
)
TOKENS = (0, 1, 2, 3, 8, 29)
LARGER: list[Any] = [
    pytest.param({"experts": 300, "top": 7}, id="hundreds of experts"),
    pytest.param({"combine": "in_turn", "out": 600, "shared": 16}, id="in turn, wide"),
]
WIDER: Any = pytest.param(
    {"hidden": 301, "inner": 131, "out": 521, "experts": 2, "top": 1}, id="odd and wide"
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_tokens(dtype: str) -> None:
    mixture = Mixture(dtype=dtype, route=dtype, experts=3, top=2)
    for tokens in (*TOKENS, 150):  # 100 for an expert: two blocks
        check(mixture, tokens)


@MOST_SLOW
@pytest.mark.parametrize("form", [*FORMS, *LARGER])
def test_every_form(form: dict[str, Any], dtype: str) -> None:
    mixture = Mixture(**fields_of(form, dtype))
    for tokens in (1, 6, 29):
        check(mixture, tokens, workers=(1, 3))


@MOST_SLOW
@pytest.mark.parametrize("form", [*TRANSPOSED, WIDER])
def test_matrices_that_lie_the_other_way(form: dict[str, Any], dtype: str) -> None:
    mixture = Mixture(**fields_of({"transposed": True, "route": "f32"} | form, dtype))
    for tokens in (1, 2, 7, 70):  # streamed; turned where more than 16 meet one expert
        check(mixture, tokens, workers=(1, 3))


def test_workers_run_at_once() -> None:
    mixture = Mixture(dtype="bf16", hidden=300, inner=200, shared=96)
    func, _, _ = mixture.op(9)
    arguments = mixture.arguments(func, 9)
    together = mixture.run(9, arguments, nth=3, threads=True)
    assert torch.equal(together, mixture.run(9, arguments))


def test_a_token_does_not_depend_on_the_others() -> None:
    """But for the order in which sums over K are taken: alone it has another register tile."""
    mixture = Mixture(dtype="bf16", hidden=64, shared=32)
    func, _, _ = mixture.op(7)
    arguments = mixture.arguments(func, 7)
    whole = mixture.run(7, arguments)
    arguments[0][3] = float("nan")
    others = [t for t in range(7) if t != 3]
    spoilt = mixture.run(7, arguments)
    assert spoilt[3].isnan().all()
    assert torch.equal(spoilt[others], whole[others])


def test_all_tokens_go_to_one_expert_and_none_to_the_others() -> None:
    mixture = Mixture(experts=40, top=1, hidden=64)
    func, _, _ = mixture.op(90)
    arguments = mixture.arguments(func, 90)
    arguments[1].fill_(39)
    (want,) = evaluate(func, [a.clone() for a in arguments])
    for nth in (1, 2, 5):
        got = mixture.run(90, arguments, nth=nth)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1.3e-6)


def test_an_expert_may_come_twice_for_a_token() -> None:
    for combine in ("slots", "experts", "in_turn"):
        mixture = Mixture(top=3, combine=combine)
        func, _, _ = mixture.op(4)
        arguments = mixture.arguments(func, 4)
        arguments[1][1] = torch.tensor([2, 0, 2])
        (want,) = evaluate(func, [a.clone() for a in arguments])
        torch.testing.assert_close(mixture.run(4, arguments), want, atol=1e-5, rtol=1.3e-6)


@pytest.mark.parametrize(("identities", "index"), [(0, -1), (0, 5), (0, 1 << 40), (2, 7)])
def test_indices_outside_of_the_experts_are_a_fault(identities: int, index: int) -> None:
    mixture = Mixture(identities=identities)
    func, _, _ = mixture.op(3)
    arguments: list[Tensor] = mixture.arguments(func, 3)
    arguments[1][2, 1] = index
    for nth in (1, 2):
        with pytest.raises(IndexError):
            mixture.run(3, arguments, nth=nth)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [4, 16])
def test_any_vector_width(lanes: int) -> None:
    for dtype in ("f32", "bf16"):
        for transposed in (False, True):
            for flags in vectors(lanes, dtype):
                mixture = Mixture(dtype=dtype, transposed=transposed, hidden=70, shared=20)
                launches = mixture.lowered(5)
                assert isinstance(launches, list)
                for launch in launches:
                    mixture.kernels[launch.kernel.symbol] = build(launch.kernel, flags)
                check(mixture, 5, workers=(1, 2))


def test_many_pairs_have_a_launch_of_their_own() -> None:
    """Fewer columns of y are computed at once, as there are more rows that wait."""
    mixture = Mixture(experts=3, top=3, hidden=8, inner=8, out=300)
    tokens = FEW_PAIRS // 3 + 1
    launches = mixture.lowered(tokens)
    assert isinstance(launches, list)
    assert launches[1].dims[:2] == (Part.DOWN, 256)
    check(mixture, tokens, workers=(1, 2))


def test_ranges_cover_all_numbers_of_pairs() -> None:
    for transposed in (False, True):
        first, second = choose_experts(transposed=transposed)
        assert (first.first, first.last, second.first) == (0, FEW_PAIRS, FEW_PAIRS + 1)
        assert second.last is None
        (only,) = choose_experts(transposed=transposed, least=4, most=8)
        assert (only.first, only.last) == (4, 8)


def test_symbolic_tokens_choose_when_they_are_known() -> None:
    func, _, op = Mixture().op(4)
    tokens = symbol("T")
    for value, shape in (
        (op.x, (tokens, 40)),
        (op.indices, (tokens, 2)),
        (op.weights, (tokens, 2)),
    ):
        value.type = value.tensor.with_shape(shape)
    op.y.type = op.infer()
    launches = lower(op, LayoutMap(func))
    assert isinstance(launches, list)
    assert isinstance(launches[0].kernel, ExpertsKernel)
    assert len({x.kernel.symbol for x in launches}) == 1
    assert [x.dims[0] for x in launches] == [Part.UP, Part.DOWN, Part.DOWN]
    assert launches[0].when is None
    assert [x.when for x in launches[1:]] == [
        (2 * tokens, 0, FEW_PAIRS),
        (2 * tokens, FEW_PAIRS + 1, None),
    ]


def test_operands_that_are_not_rows_are_copied() -> None:
    func, _, op = Mixture().op(4)
    columns = Layout(0, (1, 4))
    outcome = lower(op, LayoutMap(func, {op.x: columns, op.indices: columns}))
    assert outcome == NeedDense((op.indices, op.x))


def test_program_packs_what_one_kernel_reads() -> None:
    _, _, op = Mixture(form="each apart", shared=8).op(2)
    assert isinstance(op, Moe)
    assert packed_operands(op) == [op.up, op.down, op.shared_up]
    _, _, op = Mixture().op(2)
    assert packed_operands(op) == []


REFUSED = [
    ({"form": "apart", "interleaved": True}, "gate and up apart, yet interleaved"),
]


@pytest.mark.parametrize(("form", "reason"), REFUSED)
def test_no_kernel_of_forms_that_it_does_not_have(form: dict[str, Any], reason: str) -> None:
    outcome = Mixture(**form).lowered(3)
    assert isinstance(outcome, Refusal)
    assert reason in outcome.reason


def test_no_kernel_of_unequal_types() -> None:
    func, _, op = Mixture().op(3)
    op.up[0].type = op.up[0].tensor.with_dtype(DType.BF16)
    outcome = lower(op, LayoutMap(func))
    assert isinstance(outcome, Refusal)
    assert "with weight bf16" in outcome.reason


def test_no_kernel_of_matrices_that_lie_anyhow() -> None:
    func, _, op = Mixture().op(3)
    every_second = Layout(0, (2 * 48 * 40, 80, 2))
    outcome = lower(op, LayoutMap(func, {op.up[0]: every_second}))
    assert isinstance(outcome, Refusal)
    assert "does not lie row by row" in outcome.reason


def test_element_writes_a_statement_for_each_rounding_point() -> None:
    made = element(swiglu(DType.BF16, 8), ("g", "u"))
    assert made.statements == (
        "const float v1 = fl_round<fl_bf16>(fl_silu(g));",
        "const float v3 = fl_round<fl_bf16>((v1 * u));",
    )
    assert made.result == "v3"


def test_element_of_an_argument_alone() -> None:
    body = Func("body")
    x = body.add_arg(TensorType(DType.F32, (4,)), "x")
    body.set_returns([x])
    assert element(body, ("g",)).result == "g"
    body.set_returns([body.append(Add(body.append(Silu(x)).y, body.append(Mul(x, x)).y)).y])
    assert element(body, ("g",)).result == "v3"
