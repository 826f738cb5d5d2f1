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
from tests.codegen.gpu.region_harness import check, planned, run, run_launches
from tests.codegen.oracle import DTYPES
from tests.codegen.samples import (
    BASE,
    BOOL_BINARY,
    FLOAT_BINARY,
    FLOAT_UNARY,
    FLOATS,
    INT_BINARY,
    INTS,
    LAYOUTS,
    PROMOTIONS,
    assert_close,
    body,
    sample,
)

NOT_IN_F64 = ("sin", "cos", "log1p", "tanh", "softplus", "floor_div", "remainder", "pow")


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_unary_op(dtype: str) -> None:
    names = [n for n in FLOAT_UNARY if dtype != "f64" or n not in NOT_IN_F64]
    lines = [f"{name} %x" for name in names]
    check(body(f"%x: {dtype}[S, 37]", lines), [sample(DType(dtype), 5, 37)], ulps=8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu(dtype: str) -> None:
    """Cancels where it is near 0, in eager too: bounded absolutely.

    What eager gives for an infinity is up to the instructions that it uses.
    """
    x = sample(DType(dtype), 5, 37)
    x[x.isinf()] = 1
    lines = [f'gelu %x {{approximate = "{kind}"}}' for kind in ("none", "tanh")]
    check(body(f"%x: {dtype}[S, 37]", lines), [x], ulps=8, atol=1e-6)


@pytest.mark.parametrize("dtype", INTS)
def test_every_unary_op_of_integers(dtype: str) -> None:
    lines = [
        f"{n} %x" for n in ("abs", "bitwise_not", "logical_not", "sign", "relu", "exp", "sigmoid")
    ]
    lines += ["neg %x"] if dtype != "u8" else []
    check(body(f"%x: {dtype}[S, 37]", lines), [sample(DType(dtype), 3, 37)])


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_binary_op(dtype: str) -> None:
    names = [n for n in FLOAT_BINARY if dtype != "f64" or n not in NOT_IN_F64]
    lines = [f"{name} %x, %z" for name in names] + ["where %c, %x, %z"]
    x, z = sample(DType(dtype), 7, 37), sample(DType(dtype), 7, 37, seed=1).flip(0)
    c = sample(DType.BOOL, 7, 37)
    check(
        body(f"%x: {dtype}[S, 37], %z: {dtype}[S, 37], %c: bool[S, 37]", lines), [x, z, c], ulps=8
    )


def test_division_rounds_as_torch_does() -> None:
    """Quotients at and beside whole numbers, signs of all kinds, and zero."""
    values = torch.tensor([-7.5, -3.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, 7.5, float("inf")])
    x, z = (t.clone() for t in torch.meshgrid(values, values, indexing="ij"))
    for dtype in ("f32", "bf16"):
        pair = [t.to(DType(dtype).torch) for t in (x, z)]
        lines = ["floor_div %x, %z", "remainder %x, %z", "div %x, %z"]
        check(body(f"%x: {dtype}[A, 11], %z: {dtype}[A, 11]", lines), pair, exact=True)


@pytest.mark.parametrize("dtype", INTS)
def test_every_binary_op_of_integers(dtype: str) -> None:
    lines = [f"{name} %x, %z" for name in INT_BINARY if name != "pow" or dtype == "u8"]
    constants = ["%three = full {value = 3, dtype = DT}", "%less = full {value = -4, dtype = DT}"]
    divisors = ["%three"] if dtype == "u8" else ["%three", "%less"]
    lines += [f"{name} %x, {by}" for name in ("floor_div", "remainder") for by in divisors]
    text = body(f"%x: {dtype}[S, 37], %z: {dtype}[S, 37]", lines)
    text = text.replace("{\n", "{\n" + "\n".join(constants[: len(divisors)]) + "\n", 1)
    x, z = sample(DType(dtype), 3, 37), sample(DType(dtype), 3, 37, seed=1)
    check(text.replace("DT", dtype), [x, z if dtype != "u8" else z % 4], exact=True)


def test_integers_wrap() -> None:
    limits = torch.iinfo(torch.int64)
    x = torch.tensor([limits.max, limits.min, limits.min, -1, 3])
    z = torch.tensor([1, -1, limits.min, limits.min, 7])
    lines = ["add %x, %z", "sub %x, %z", "mul %x, %z", "neg %x", "abs %x"]
    check(body("%x: i64[5], %z: i64[5]", lines), [x, z], exact=True)


def test_every_binary_op_of_bools() -> None:
    lines = [f"{name} %x, %z" for name in BOOL_BINARY] + ["bitwise_not %x", "logical_not %x"]
    x, z = sample(DType.BOOL, 3, 37), sample(DType.BOOL, 3, 37, seed=1)
    check(body("%x: bool[S, 37], %z: bool[S, 37]", lines), [x, z], exact=True)


@pytest.mark.parametrize("source", [*FLOATS, *INTS, "bool"])
def test_cast_to_every_type(source: str) -> None:
    x = sample(DType(source), 3, 37)
    if DType(source).is_float:
        x = x.nan_to_num(2.0, 3.0, -3.0)
    targets = [d for d in DType if d is not DType.U8 or not DType(source).is_float]
    lines = [f"cast %x {{dtype = {d}}}" for d in targets]
    check(body(f"%x: {source}[S, 37]", lines), [x], exact=True)


def test_cast_of_special_values_to_smaller_floats() -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor(
        [inf, -inf, nan, -0.0, 65504.0, 65520.0, 1e-8, 3.4e38, 1e-40, 6e-8], dtype=torch.float64
    )
    for source in ("f64", "f32"):
        lines = [f"cast %x {{dtype = {d}}}" for d in ("bf16", "f16", "bool", "f32")]
        check(body(f"%x: {source}[10]", lines), [x.to(DType(source).torch)], exact=True)


@pytest.mark.parametrize(("left", "right"), PROMOTIONS)
def test_operands_are_promoted(left: str, right: str) -> None:
    lines = [f"{n} %x, %z" for n in ("add", "mul", "div", "maximum", "lt", "eq")]
    lines += [f"{n} %z, %x" for n in ("add", "div", "ge")] + ["where %c, %x, %z"]
    x, z = sample(DType(left), 3, 37), sample(DType(right), 3, 37, seed=1)
    c = sample(DType.BOOL, 3, 37)
    arguments = f"%x: {left}[S, 37], %z: {right}[S, 37], %c: bool[S, 37]"
    check(body(arguments, lines), [x, z, c])


@pytest.mark.parametrize(("kind", "scalar"), [
    ("bf16", "f32"), ("f16", "f32"), ("bf16", "f64"), ("f32", "f64"), ("i32", "i64"),
    ("i64", "f32"), ("bf16", "i64"), ("bool", "i64"),
])  # fmt: skip
def test_scalars_do_not_promote_and_round_as_in_torch(kind: str, scalar: str) -> None:
    """A 0-d operand of products and quotients is not rounded to a 16-bit type first; others are."""
    names = ["add", "mul", "maximum", "lt", "ge", "eq"] + (["sub", "div"] if kind != "bool" else [])
    names += ["pow", "remainder"] if DType(kind).is_float else []
    lines = [f"{n} %x, %s" for n in names] + [f"{n} %s, %x" for n in names]
    x = sample(DType(kind), 3, 37).abs() if kind != "bool" else sample(DType(kind), 3, 37)
    s = torch.tensor(1.2345678, dtype=torch.float64).to(DType(scalar).torch)
    check(body(f"%x: {kind}[S, 37], %s: {scalar}[]", lines), [x, s], exact=kind in ("bf16", "f16"))


def test_floor_div_by_a_scalar_in_16_bits() -> None:
    x = sample(DType.BF16, 3, 37).nan_to_num(1.0, 2.0, 3.0)
    text = body("%x: bf16[S, 37], %s: f32[]", ["floor_div %x, %s"])
    check(text, [x, torch.tensor(0.333333)], exact=True)


def test_constants_round_to_their_type() -> None:
    values = ["0.1", "1e-06", "-2.5", "inf", "-inf", "nan", "3", "16777217", "1e-45"]
    for dtype in FLOATS:
        fulls = [f"%k{i} = full {{value = {v}, dtype = {dtype}}}" for i, v in enumerate(values)]
        text = body(f"%x: {dtype}[S, 37]", [f"add %x, %k{i}" for i in range(len(values))])
        x = torch.zeros(2, 37, dtype=DType(dtype).torch)
        check(text.replace("{\n", "{\n" + "\n".join(fulls) + "\n", 1), [x], exact=True)


@pytest.mark.parametrize("exponent", ["2", "3.0", "0.5", "-0.5", "-1.0", "-2", "1", "1.5"])
def test_powers_by_a_constant(exponent: str) -> None:
    text = f"""func @f(%x: f32[S, 37]) {{
      %e = full {{value = {exponent}, dtype = f32}}
      %y = pow %x, %e
      return %y
    }}"""
    check(text, [sample(DType.F32, 3, 37).abs()], ulps=2)


def test_large_angles() -> None:
    x = torch.tensor([1e3, 1e5, 1e7, 123456789.0, 3e38, -8e9, 1.0, 0.0])
    check(body("%x: f32[8]", ["sin %x", "cos %x"]), [x], ulps=1)


# -- where things lie -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16", "bool", "i8"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_copy_of_any_layout_is_dense(name: str, dtype: str) -> None:
    x = LAYOUTS[name](BASE.to(DType(dtype).torch))
    text = body(f"%x: {dtype}[A, B, C, D]", ["copy %x"])
    check(text, [x], exact=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_results_may_have_any_layout(name: str) -> None:
    if name == "expanded":
        return  # elements that share their place cannot be written
    x = LAYOUTS[name](BASE)
    out = LAYOUTS[name](torch.zeros_like(BASE))
    run(body("%x: f32[A, B, C, D]", ["add %x, %x"]), [x.contiguous()], outs=[out])
    assert torch.equal(out, 2 * x)


def test_operands_of_different_layouts_broadcast() -> None:
    x, row, column = BASE.permute(0, 2, 1, 3), torch.randn(35), torch.randn(4, 1, 1)
    text = body("%x: f32[B, 4, 3, 35], %r: f32[35], %c: f32[4, 1, 1]", ["mul %x, %r", "sub %x, %c"])
    check(text, [x, row, column], exact=True)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0), (3, 0)])
def test_the_sum_of_nothing_is_zero(shape: tuple[int, int], axis: int) -> None:
    """Whether the other axis lies side by side or not; an expert without tokens, for one."""
    text = body(f"%x: f32[{shape[0]}, {shape[1]}]", [f"sum %x {{axes = ({axis},)}}"])
    check(text, [torch.randn(shape)], exact=True)


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


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS])
def test_iota_and_full(dtype: str) -> None:
    text = f"""func @f(%x: f32[N]) {{
      %a = iota {{length = N, start = 3, step = 2, dtype = {dtype}}}
      %b = full {{value = 7, shape = (N,), dtype = {dtype}}}
      %c = full {{value = N, shape = (N,), dtype = {dtype}}}
      %d = iota {{length = N, start = N, step = 1, dtype = {dtype}}}
      return %a, %b, %c, %d
    }}"""
    for n in (0, 1, 37):
        check(text, [torch.zeros(n)], exact=True)


def test_fractional_iota() -> None:
    text = """func @f(%x: f32[N]) {
      %a = iota {length = N, start = 0.25, step = 0.1, dtype = f32}
      %b = iota {length = N, start = 0.25, step = 0.1, dtype = f64}
      return %a, %b
    }"""
    check(text, [torch.zeros(37)], ulps=1)


def test_iota_broadcast_along_both_axes() -> None:
    text = """func @f(%x: i64[5]) {
      %rows = reshape %x {shape = (5, 1)}
      %i = iota {length = 7}
      %m = le %i, %rows
      return %m
    }"""
    check(text, [torch.tensor([3, 0, 6, -1, 2])], exact=True)


# -- regions --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_chain_keeps_every_rounding_point(dtype: str) -> None:
    text = f"""func @f(%x: {dtype}[B, S, 37], %z: {dtype}[37], %b: {dtype}[B, 1, 1]) {{
      %a = mul %x, %z
      %c = add %a, %b
      %f = cast %c {{dtype = f32}}
      %g = mul %f, %f
      %h = cast %g {{dtype = {dtype}}}
      %y = sub %h, %a
      return %y, %c
    }}"""
    x, z, b = (
        sample(DType(dtype), *s, seed=i, scale=1.0)
        for i, s in enumerate([(2, 3, 37), (37,), (2, 1, 1)])
    )
    # in float32 the compiler may contract a product and a sum, which rounds once less
    tensors = [x.nan_to_num(1, 2, 3), z.nan_to_num(1, 2, 3), b]
    check(text, tensors, exact=dtype != "f32", atol=1e-6)


def test_views_inside_a_region() -> None:
    text = """func @f(%x: f32[B, S, 37], %m: f32[B, S], %w: f32[37, 1]) {
      %n = neg %m
      %u = reshape %n {shape = (B, S, 1)}
      %e = expand %u {shape = (B, S, 37)}
      %t = tanh %w
      %p = permute %t {dims = (1, 0)}
      %a = mul %x, %e
      %y = add %a, %p
      return %y
    }"""
    check(text, [torch.randn(2, 3, 37), torch.randn(2, 3), torch.randn(37, 1)], atol=1e-6)


def test_one_value_read_along_two_axes() -> None:
    text = """func @f(%p: i64[S]) {
      %q = neg %p
      %c = reshape %q {shape = (S, 1)}
      %m = sub %c, %q
      return %m
    }"""
    check(text, [torch.randperm(11)], exact=True)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("width", [1, 5, 37, 2500])
def test_norm_spelled_out(dtype: str, width: int) -> None:
    text = f"""func @f(%x: {dtype}[B, S, {width}], %w: {dtype}[{width}]) {{
      %f = cast %x {{dtype = f32}}
      %q = mul %f, %f
      %m = mean %q {{axes = (2,), keepdim = true}}
      %k = full {{value = 1e-06, dtype = f32}}
      %e = add %m, %k
      %r = rsqrt %e
      %n = mul %f, %r
      %c = cast %n {{dtype = {dtype}}}
      %y = mul %w, %c
      return %y, %r
    }}"""
    x, w = torch.randn(2, 3, width, dtype=torch.float64), torch.randn(width, dtype=torch.float64)
    check(text, [t.to(DType(dtype).torch) for t in (x, w)], ulps=16)


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_softmax_by_two_reductions(kind: str) -> None:
    text = f"""func @f(%x: {kind}[B, 37]) {{
      %f = cast %x {{dtype = f32}}
      %m = amax %f {{axes = (1,), keepdim = true}}
      %d = sub %f, %m
      %e = exp %d
      %s = sum %e {{axes = (1,), keepdim = true}}
      %p = div %e, %s
      %y = cast %p {{dtype = {kind}}}
      return %y
    }}"""
    check(text, [torch.randn(5, 37, dtype=DType(kind).torch) * 5], ulps=8)


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


@pytest.mark.parametrize("dtype", [*INTS, "bool"])
def test_reductions_of_integers(dtype: str) -> None:
    tests = [] if dtype == "u8" else ["any", "all"]  # torch gives uint8 for these, not bool
    lines = [f"{n} %x {{axes = (1,)}}" for n in ("sum", "amax", "amin", *tests)]
    x = sample(DType(dtype), 7, 37)
    x[0], x[1] = 0, 1
    check(body(f"%x: {dtype}[A, 37]", lines), [x], exact=True)


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


def test_weighted_sum_over_a_few_elements_with_what_follows() -> None:
    text = """func @f(%x: bf16[T, 4, 37], %w: f32[T, 4], %r: bf16[T, 37]) {
      %u = reshape %w {shape = (T, 4, 1)}
      %c = cast %u {dtype = bf16}
      %p = mul %x, %c
      %s = sum %p {axes = (1,)}
      %y = add %r, %s
      %t = tanh %y
      return %t, %s
    }"""
    tensors = [torch.randn(5, 4, 37).bfloat16(), torch.rand(5, 4), torch.randn(5, 37).bfloat16()]
    check(text, tensors, atol=1e-2)


def test_reduction_of_strided_rows() -> None:
    x = torch.randn(3, 37, 5).transpose(1, 2)
    check(body("%x: f32[A, B, 37]", ["mean %x {axes = (2,)}"]), [x], atol=1e-6)


def test_reduction_of_what_does_not_change_along_the_row() -> None:
    text = """func @f(%x: f32[A, 1], %w: f32[9]) {
      %e = expand %x {shape = (A, 9)}
      %s = sum %e {axes = (1,), keepdim = true}
      %y = add %w, %s
      return %y
    }"""
    check(text, [torch.randn(3, 1), torch.randn(9)], atol=1e-6)


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


def test_a_rounded_product_is_what_is_subtracted() -> None:
    """An fma would keep more of one product than of the other, and the root of that be NaN."""
    a = torch.linspace(0.1, 7, 1000)
    check(
        """func @f(%a: f32[N], %b: f32[N]) {
          %p = mul %a, %a
          %q = mul %b, %b
          %d = sub %p, %q
          %y = sqrt %d
          return %y
        }""",
        [a, a.clone()],
        exact=True,
    )


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
