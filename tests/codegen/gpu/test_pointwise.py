"""Element-wise regions in Triton against the references: every op, every dtype, any strides."""

from __future__ import annotations

import pytest
import torch

from fuseline.build_gpu import candidates
from fuseline.codegen.lower import Refusal
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import Layout
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType, symbol
from fuseline.runtime.cache import Cache
from tests.codegen.cases import Make, check_cases
from tests.codegen.gpu.region_harness import check, planned, run, run_launches
from tests.codegen.pointwise_cases import POINTWISE
from tests.codegen.samples import (
    BASE,
    BOOL_BINARY,
    FLOATS,
    INT_BINARY,
    INTS,
    LAYOUTS,
    assert_close,
    body,
    sample,
)


@pytest.mark.parametrize("case", POINTWISE)
def test_cases(case: Make) -> None:
    check_cases(case, check)


@pytest.mark.parametrize("name", LAYOUTS)
def test_results_may_have_any_layout(name: str) -> None:
    if name == "expanded":
        return  # elements that share their place cannot be written
    x = LAYOUTS[name](BASE)
    out = LAYOUTS[name](torch.zeros_like(BASE))
    run(body("%x: f32[A, B, C, D]", ["add %x, %x"]), [x.contiguous()], outs=[out])
    assert torch.equal(out, 2 * x)


def test_part_of_a_larger_result() -> None:
    func = parse_func(body("%x: f32[B, 3, 5]", ["copy %x"]))
    x, out = torch.randn(2, 3, 5), torch.zeros(2, 3, 11)
    made = planned(func, [Layout(0, x.stride())], [Layout(0, out.stride())], [symbol("at")])
    assert not isinstance(made, Refusal)
    run_launches(made, {func.args[0]: x, func.returns[0]: out}, {"B": 2, "at": 4})
    assert torch.equal(out[..., 4:9], x)
    assert out[..., :4].abs().sum() + out[..., 9:].abs().sum() == 0


def test_dense_operands_collapse_to_one_row() -> None:
    func = parse_func(body("%x: f32[B, S, 8], %z: f32[B, S, 8]", ["add %x, %z"]))
    made = planned(func)
    assert not isinstance(made, Refusal)
    few, many = made
    assert [str(d) for d in few.dims] == [str(d) for d in many.dims] == ["8*B*S"]
    assert few.when is not None
    assert many.when is not None
    assert few.when[2] == many.when[1] - 1


def test_one_kernel_serves_all_counts_of_tokens() -> None:
    symbols = set[str]()
    for tokens in ("S", "T"):
        func = parse_func(body(f"%x: bf16[{tokens}, 64], %w: bf16[64]", ["mul %x, %w"]))
        made = planned(func)
        assert not isinstance(made, Refusal)
        symbols |= {launch.kernel.symbol for launch in made}
    assert len(symbols) == 2, "one for few tokens, one for many"


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
    for got, ref in zip(run(text, [tensor]), want, strict=True):
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
    if axes == "(0, 2)":
        made = planned(parse_func(body("%x: f32[3, 4, 37]", ["sum %x {axes = (0, 2)}"])))
        assert isinstance(made, Refusal)
        assert made.reason == "the reduced axes cannot be walked as one"
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
    check(text, [x], exact=exact, ulps=16, atol=1e-5)


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
    made = planned(func)
    assert isinstance(made, Refusal)
    assert reason in made.reason


def of_integers(dtype: str) -> str:
    """Every op on integers, casts to and reductions of them."""
    unary = ["abs", "bitwise_not", "logical_not", "sign", "relu", "exp", "neg"]
    lines = [f"{name} %x" for name in unary if name != "neg" or dtype != "u8"]
    lines += [f"{name} %x, %z" for name in INT_BINARY]
    lines += [f"{name} %x, %three" for name in ("floor_div", "remainder")]
    lines += [f"cast %x {{dtype = {target}}}" for target in DType]
    text = body(f"%x: {dtype}[S, 64], %z: {dtype}[S, 64]", lines)
    return text.replace("{\n", f"{{\n%three = full {{value = 3, dtype = {dtype}}}\n", 1)


def of_bools() -> str:
    lines = [f"{name} %x, %z" for name in BOOL_BINARY] + ["bitwise_not %x", "logical_not %x"]
    lines += [f"cast %x {{dtype = {target}}}" for target in DType] + ["where %x, %x, %z"]
    return body("%x: bool[S, 64], %z: bool[S, 64]", lines)


def of_reductions(dtype: str) -> str:
    names = ["sum", "amax", "amin", "any", "all"] + (["mean"] if DType(dtype).is_float else [])
    return body(f"%x: {dtype}[S, 64]", [f"{name} %x {{axes = (1,)}}" for name in names])


TEXTS = {
    **{dtype: of_integers(dtype) for dtype in INTS},
    "bool": of_bools(),
    **{f"reductions of {dtype}": of_reductions(dtype) for dtype in (*FLOATS, *INTS, "bool")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_what_is_interpreted_compiles(name: str, binary_cache: Cache) -> None:
    made = planned(parse_func(TEXTS[name]))
    assert not isinstance(made, Refusal)
    for launch in made:
        good, refused = candidates(binary_cache, launch, GPU_TARGETS[1])
        assert good, refused
