"""Element-wise kernels against the ops' references: every op, every dtype, any strides."""

from __future__ import annotations

import pytest
import torch

from fuseline.codegen.cpu.region_plan import plan
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import Layout, dense
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType, substitute, symbol
from tests.codegen.cases import Make, check_cases
from tests.codegen.cpu.harness import build
from tests.codegen.cpu.region_harness import check, run
from tests.codegen.pointwise_cases import NOT_IN_F64, POINTWISE, gelus, special_quotients
from tests.codegen.samples import (
    BASE,
    FLOAT_BINARY,
    FLOAT_UNARY,
    FLOATS,
    LAYOUTS,
    assert_close,
    body,
    sample,
)


@pytest.mark.parametrize("case", POINTWISE)
def test_cases(case: Make) -> None:
    check_cases(case, check)


def test_functions_that_gpus_have_none_of_in_float64() -> None:
    unary = [name for name in FLOAT_UNARY if name in NOT_IN_F64]
    binary = [name for name in FLOAT_BINARY if name in NOT_IN_F64]
    assert {*unary, *binary} == {*NOT_IN_F64}
    lines = [f"{name} %x" for name in unary] + [f"{name} %x, %z" for name in binary]
    x, z = sample(DType.F64, 7, 37), sample(DType.F64, 7, 37, seed=1).flip(0)
    check(body("%x: f64[S, 37], %z: f64[S, 37]", lines), [x, z], ulps=8)
    for case in (gelus("f64"), special_quotients("f64")):
        check(case.text, case.tensors, exact=case.exact, ulps=case.ulps, atol=case.atol)


@pytest.mark.parametrize("name", LAYOUTS)
def test_results_may_have_any_layout(name: str) -> None:
    if name == "expanded":
        return  # elements that share their place cannot be written
    x = LAYOUTS[name](BASE)
    out = LAYOUTS[name](torch.zeros_like(BASE))
    run(body("%x: f32[A, B, C, D]", ["add %x, %x"]), [x.contiguous()], outs=[out], nth=2)
    assert torch.equal(out, 2 * x)


def test_part_of_a_larger_result() -> None:
    func = parse_func(body("%x: f32[B, 3, 5]", ["copy %x"]))
    x, out = torch.randn(2, 3, 5), torch.zeros(2, 3, 11)
    made = plan(func, [Layout(0, x.stride())], [Layout(0, out.stride())], [symbol("at")])
    assert not isinstance(made, str)
    build(made.kernel)([x, out], [substitute(d, {"B": 2, "at": 4}) for d in made.dims])
    assert torch.equal(out[..., 4:9], x)
    assert out[..., :4].abs().sum() + out[..., 9:].abs().sum() == 0


def test_dense_operands_collapse_to_one_row() -> None:
    func = parse_func(body("%x: f32[B, S, 8], %z: f32[B, S, 8]", ["add %x, %z"]))
    layout = dense(func.args[0].shape)
    made = plan(func, [layout, layout], [layout])
    assert not isinstance(made, str)
    assert made.kernel.dims == ("n",)
    assert [str(d) for d in made.dims] == ["8*B*S"]


def test_one_kernel_serves_all_extents() -> None:
    symbols = set[str]()
    for shape in ("[3, 64]", "[S, 128]"):
        func = parse_func(
            body(f"%x: bf16{shape}, %w: bf16[{shape[1:].split()[1][:-1]}]", ["mul %x, %w"])
        )
        made = plan(func, [dense(a.shape) for a in func.args], [dense(func.args[0].shape)])
        assert not isinstance(made, str)
        symbols.add(made.kernel.symbol)
    assert len(symbols) == 1


# -- what comes from nothing ----------------------------------------------------------------


# -- regions --------------------------------------------------------------------------------


REDUCTIONS = ("sum", "mean", "amax", "amin")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("keepdim", ["true", "false"])
def test_reductions(dtype: str, keepdim: str) -> None:
    lines = [f"{n} %x {{axes = (2,), keepdim = {keepdim}}}" for n in (*REDUCTIONS, "any", "all")]
    x = torch.randn(3, 5, 1037, dtype=torch.float64)
    x[0, 0, 3], x[1, 1, 5], x[2, 2, 1036] = float("nan"), float("inf"), float("-inf")
    x[0, 1] = 0
    text = body(f"%x: {dtype}[A, B, C]", lines)
    tensor = x.to(DType(dtype).torch)
    want = evaluate(parse_func(text), [tensor])
    # sums cancel: their error is bounded by the sum of the magnitudes, about 830 here
    atol = 4e-5 if dtype != "f64" else 1e-12
    for got, ref in zip(run(text, [tensor], nth=3), want, strict=True):
        assert_close(got, ref, exact=False, ulps=4, atol=atol)
    exact = tensor.double().sum(2, keepdim=keepdim == "true")
    finite = exact.isfinite()
    error = (run(text, [tensor])[0].double() - exact)[finite].abs()
    unit = torch.finfo(tensor.dtype).eps
    magnitudes = tensor.double().abs().sum(2, keepdim=keepdim == "true")
    assert (error <= unit * exact[finite].abs() + 2**-23 * magnitudes[finite]).all()


@pytest.mark.parametrize("axes", ["(0,)", "(1,)", "(0, 1)", "(1, 2)", "(0, 1, 2)", "(0, 2)"])
def test_reductions_over_any_axes(axes: str) -> None:
    x = torch.randn(3, 4, 37)
    result = plan(
        parse_func(body("%x: f32[3, 4, 37]", [f"sum %x {{axes = {axes}}}"])),
        [dense([3, 4, 37])], [dense([1])],
    ) if axes == "(0, 2)" else None  # fmt: skip
    if result is not None:
        assert result == "the reduced axes cannot be walked as one"
        return
    check(body("%x: f32[A, B, 37]", [f"sum %x {{axes = {axes}}}"]), [x], atol=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64", "i32", "bool"])
@pytest.mark.parametrize("count", [1, 2, 8, 33])
def test_reduction_of_a_few_elements_that_lie_apart(dtype: str, count: int) -> None:
    """The sum over the experts of a token: written out where there are few, else a loop."""
    names = ["sum", "amax", "amin", "any", "all"] + (["mean"] if DType(dtype).is_float else [])
    lines = [f"{name} %x {{axes = (1,)}}" for name in names]
    text = body(f"%x: {dtype}[T, {count}, 37]", lines)
    x = sample(DType(dtype), 5, count, 37)
    exact = not DType(dtype).is_float
    check(text, [x], exact=exact, ulps=16, atol=1e-5, workers=(1, 2, 3))
    func = parse_func(text)
    made = plan(func, [dense(func.args[0].shape)], [dense(v.shape) for v in func.returns])
    assert not isinstance(made, str)
    assert made.kernel.by_row == (count == 33)


# -- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (body("%x: i64[5], %z: i64[5]", ["floor_div %x, %z"]), "an integer that may be 0"),
        (body("%x: f32[5, 3]", ["cumsum %x {axis = 1}"]), "cumsum is not element-wise"),
        (body("%x: f32[6]", ["reshape %x {shape = (2, 3)}"]), "more than add dims"),
        (body("%x: f32[6], %z: f32[2, 6]", ["neg %z", "neg %x"]), "a result is f32[6]"),
        (
            body("%x: f32[6, 2]", ["sum %x {axes = (0,)}", "sum %x {axes = (1,)}"]),
            "run over different axes",
        ),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    func = parse_func(text)
    made = plan(func, [dense(a.shape) for a in func.args], [dense(v.shape) for v in func.returns])
    assert isinstance(made, str)
    assert reason in made
