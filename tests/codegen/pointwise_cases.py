"""Regions of element-wise ops and reductions: every op, every dtype, any strides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fuseline.ir.types import DType
from tests.codegen.cases import Case, Cases
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
    body,
    sample,
)

POINTWISE = Cases()

NOT_IN_F64 = ("sin", "cos", "log1p", "tanh", "softplus", "floor_div", "remainder", "pow")
"""What kernels for GPUs have no form of in float64."""


def gelus(dtype: str) -> Case:
    """Cancels where it is near 0, in eager too: bounded absolutely.

    What eager gives for an infinity is up to the instructions that it uses.
    """
    x = sample(DType(dtype), 5, 37)
    x[x.isinf()] = 1
    lines = [f'gelu %x {{approximate = "{kind}"}}' for kind in ("none", "tanh")]
    return Case(body(f"%x: {dtype}[S, 37]", lines), [x], ulps=8, atol=1e-6)


@POINTWISE
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def gelu(dtype: str) -> Iterator[Case]:
    yield gelus(dtype)


@POINTWISE
@pytest.mark.parametrize("dtype", FLOATS)
def every_unary_op(dtype: str) -> Iterator[Case]:
    names = [n for n in FLOAT_UNARY if dtype != "f64" or n not in NOT_IN_F64]
    lines = [f"{name} %x" for name in names]
    yield Case(body(f"%x: {dtype}[S, 37]", lines), [sample(DType(dtype), 5, 37)], ulps=8)


@POINTWISE
@pytest.mark.parametrize("dtype", INTS)
def every_unary_op_of_integers(dtype: str) -> Iterator[Case]:
    lines = [
        f"{n} %x" for n in ("abs", "bitwise_not", "logical_not", "sign", "relu", "exp", "sigmoid")
    ]
    lines += ["neg %x"] if dtype != "u8" else []
    yield Case(body(f"%x: {dtype}[S, 37]", lines), [sample(DType(dtype), 3, 37)])


@POINTWISE
@pytest.mark.parametrize("dtype", FLOATS)
def every_binary_op(dtype: str) -> Iterator[Case]:
    names = [n for n in FLOAT_BINARY if dtype != "f64" or n not in NOT_IN_F64]
    lines = [f"{name} %x, %z" for name in names] + ["where %c, %x, %z"]
    x, z = sample(DType(dtype), 7, 37), sample(DType(dtype), 7, 37, seed=1).flip(0)
    c = sample(DType.BOOL, 7, 37)
    yield Case(
        body(f"%x: {dtype}[S, 37], %z: {dtype}[S, 37], %c: bool[S, 37]", lines), [x, z, c], ulps=8
    )


def special_quotients(dtype: str) -> Case:
    """Quotients at and beside whole numbers, signs of all kinds, and zero."""
    values = torch.tensor([-7.5, -3.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, 7.5, float("inf")])
    pair = torch.meshgrid(values, values, indexing="ij")
    lines = ["floor_div %x, %z", "remainder %x, %z", "div %x, %z"]
    text = body(f"%x: {dtype}[A, 11], %z: {dtype}[A, 11]", lines)
    return Case(text, [t.clone().to(DType(dtype).torch) for t in pair], exact=True)


@POINTWISE
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def division_rounds_as_torch_does(dtype: str) -> Iterator[Case]:
    yield special_quotients(dtype)


@POINTWISE
@pytest.mark.parametrize("dtype", INTS)
def every_binary_op_of_integers(dtype: str) -> Iterator[Case]:
    lines = [f"{name} %x, %z" for name in INT_BINARY if name != "pow" or dtype == "u8"]
    constants = ["%three = full {value = 3, dtype = DT}", "%less = full {value = -4, dtype = DT}"]
    divisors = ["%three"] if dtype == "u8" else ["%three", "%less"]
    lines += [f"{name} %x, {by}" for name in ("floor_div", "remainder") for by in divisors]
    text = body(f"%x: {dtype}[S, 37], %z: {dtype}[S, 37]", lines)
    text = text.replace("{\n", "{\n" + "\n".join(constants[: len(divisors)]) + "\n", 1)
    x, z = sample(DType(dtype), 3, 37), sample(DType(dtype), 3, 37, seed=1)
    yield Case(text.replace("DT", dtype), [x, z if dtype != "u8" else z % 4], exact=True)


@POINTWISE
def integers_wrap() -> Iterator[Case]:
    limits = torch.iinfo(torch.int64)
    x = torch.tensor([limits.max, limits.min, limits.min, -1, 3])
    z = torch.tensor([1, -1, limits.min, limits.min, 7])
    lines = ["add %x, %z", "sub %x, %z", "mul %x, %z", "neg %x", "abs %x"]
    yield Case(body("%x: i64[5], %z: i64[5]", lines), [x, z], exact=True)


@POINTWISE
def every_binary_op_of_bools() -> Iterator[Case]:
    lines = [f"{name} %x, %z" for name in BOOL_BINARY] + ["bitwise_not %x", "logical_not %x"]
    x, z = sample(DType.BOOL, 3, 37), sample(DType.BOOL, 3, 37, seed=1)
    yield Case(body("%x: bool[S, 37], %z: bool[S, 37]", lines), [x, z], exact=True)


@POINTWISE
@pytest.mark.parametrize("source", [*FLOATS, *INTS, "bool"])
def cast_to_every_type(source: str) -> Iterator[Case]:
    x = sample(DType(source), 3, 37)
    if DType(source).is_float:
        x = x.nan_to_num(2.0, 3.0, -3.0)
    targets = [d for d in DType if d is not DType.U8 or not DType(source).is_float]
    lines = [f"cast %x {{dtype = {d}}}" for d in targets]
    yield Case(body(f"%x: {source}[S, 37]", lines), [x], exact=True)


@POINTWISE
def cast_of_special_values_to_smaller_floats() -> Iterator[Case]:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor(
        [inf, -inf, nan, -0.0, 65504.0, 65520.0, 1e-8, 3.4e38, 1e-40, 6e-8], dtype=torch.float64
    )
    for source in ("f64", "f32"):
        lines = [f"cast %x {{dtype = {d}}}" for d in ("bf16", "f16", "bool", "f32")]
        yield Case(body(f"%x: {source}[10]", lines), [x.to(DType(source).torch)], exact=True)


@POINTWISE
@pytest.mark.parametrize(("left", "right"), PROMOTIONS)
def operands_are_promoted(left: str, right: str) -> Iterator[Case]:
    lines = [f"{n} %x, %z" for n in ("add", "mul", "div", "maximum", "lt", "eq")]
    lines += [f"{n} %z, %x" for n in ("add", "div", "ge")] + ["where %c, %x, %z"]
    x, z = sample(DType(left), 3, 37), sample(DType(right), 3, 37, seed=1)
    c = sample(DType.BOOL, 3, 37)
    arguments = f"%x: {left}[S, 37], %z: {right}[S, 37], %c: bool[S, 37]"
    yield Case(body(arguments, lines), [x, z, c])


@POINTWISE
@pytest.mark.parametrize(("kind", "scalar"), [
    ("bf16", "f32"), ("f16", "f32"), ("bf16", "f64"), ("f32", "f64"), ("i32", "i64"),
    ("i64", "f32"), ("bf16", "i64"), ("bool", "i64"),
])  # fmt: skip
def scalars_do_not_promote_and_round_as_in_torch(kind: str, scalar: str) -> Iterator[Case]:
    """A 0-d operand of products and quotients is not rounded to a 16-bit type first; others are."""
    names = ["add", "mul", "maximum", "lt", "ge", "eq"] + (["sub", "div"] if kind != "bool" else [])
    names += ["pow", "remainder"] if DType(kind).is_float else []
    lines = [f"{n} %x, %s" for n in names] + [f"{n} %s, %x" for n in names]
    x = sample(DType(kind), 3, 37).abs() if kind != "bool" else sample(DType(kind), 3, 37)
    s = torch.tensor(1.2345678, dtype=torch.float64).to(DType(scalar).torch)
    yield Case(
        body(f"%x: {kind}[S, 37], %s: {scalar}[]", lines), [x, s], exact=kind in ("bf16", "f16")
    )


@POINTWISE
def floor_div_by_a_scalar_in_16_bits() -> Iterator[Case]:
    x = sample(DType.BF16, 3, 37).nan_to_num(1.0, 2.0, 3.0)
    text = body("%x: bf16[S, 37], %s: f32[]", ["floor_div %x, %s"])
    yield Case(text, [x, torch.tensor(0.333333)], exact=True)


@POINTWISE
def constants_round_to_their_type() -> Iterator[Case]:
    values = ["0.1", "1e-06", "-2.5", "inf", "-inf", "nan", "3", "16777217", "1e-45"]
    for dtype in FLOATS:
        fulls = [f"%k{i} = full {{value = {v}, dtype = {dtype}}}" for i, v in enumerate(values)]
        text = body(f"%x: {dtype}[S, 37]", [f"add %x, %k{i}" for i in range(len(values))])
        x = torch.zeros(2, 37, dtype=DType(dtype).torch)
        yield Case(text.replace("{\n", "{\n" + "\n".join(fulls) + "\n", 1), [x], exact=True)


@POINTWISE
@pytest.mark.parametrize("exponent", ["2", "3.0", "0.5", "-0.5", "-1.0", "-2", "1", "1.5"])
def powers_by_a_constant(exponent: str) -> Iterator[Case]:
    text = f"""func @f(%x: f32[S, 37]) {{
      %e = full {{value = {exponent}, dtype = f32}}
      %y = pow %x, %e
      return %y
    }}"""
    yield Case(text, [sample(DType.F32, 3, 37).abs()], ulps=2)


@POINTWISE
def large_angles() -> Iterator[Case]:
    x = torch.tensor([1e3, 1e5, 1e7, 123456789.0, 3e38, -8e9, 1.0, 0.0])
    yield Case(body("%x: f32[8]", ["sin %x", "cos %x"]), [x], ulps=1)


@POINTWISE
@pytest.mark.parametrize("dtype", ["f32", "bf16", "bool", "i8"])
@pytest.mark.parametrize("name", LAYOUTS)
def copy_of_any_layout_is_dense(name: str, dtype: str) -> Iterator[Case]:
    x = LAYOUTS[name](BASE.to(DType(dtype).torch))
    text = body(f"%x: {dtype}[A, B, C, D]", ["copy %x"])
    yield Case(text, [x], exact=True)


@POINTWISE
def operands_of_different_layouts_broadcast() -> Iterator[Case]:
    x, row, column = BASE.permute(0, 2, 1, 3), torch.randn(35), torch.randn(4, 1, 1)
    text = body("%x: f32[B, 4, 3, 35], %r: f32[35], %c: f32[4, 1, 1]", ["mul %x, %r", "sub %x, %c"])
    yield Case(text, [x, row, column], exact=True)


@POINTWISE
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0), (3, 0)])
def the_sum_of_nothing_is_zero(shape: tuple[int, int], axis: int) -> Iterator[Case]:
    """Whether the other axis lies side by side or not; an expert without tokens, for one."""
    text = body(f"%x: f32[{shape[0]}, {shape[1]}]", [f"sum %x {{axes = ({axis},)}}"])
    yield Case(text, [torch.randn(shape)], exact=True)


@POINTWISE
@pytest.mark.parametrize("dtype", [*FLOATS, *INTS])
def iota_and_full(dtype: str) -> Iterator[Case]:
    text = f"""func @f(%x: f32[N]) {{
      %a = iota {{length = N, start = 3, step = 2, dtype = {dtype}}}
      %b = full {{value = 7, shape = (N,), dtype = {dtype}}}
      %c = full {{value = N, shape = (N,), dtype = {dtype}}}
      %d = iota {{length = N, start = N, step = 1, dtype = {dtype}}}
      return %a, %b, %c, %d
    }}"""
    for n in (0, 1, 37):
        yield Case(text, [torch.zeros(n)], exact=True)


@POINTWISE
def fractional_iota() -> Iterator[Case]:
    text = """func @f(%x: f32[N]) {
      %a = iota {length = N, start = 0.25, step = 0.1, dtype = f32}
      %b = iota {length = N, start = 0.25, step = 0.1, dtype = f64}
      return %a, %b
    }"""
    yield Case(text, [torch.zeros(37)], ulps=1)


@POINTWISE
def iota_broadcast_along_both_axes() -> Iterator[Case]:
    text = """func @f(%x: i64[5]) {
      %rows = reshape %x {shape = (5, 1)}
      %i = iota {length = 7}
      %m = le %i, %rows
      return %m
    }"""
    yield Case(text, [torch.tensor([3, 0, 6, -1, 2])], exact=True)


@POINTWISE
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def chain_keeps_every_rounding_point(dtype: str) -> Iterator[Case]:
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
    yield Case(text, tensors, exact=dtype != "f32", atol=1e-6)


@POINTWISE
def views_inside_a_region() -> Iterator[Case]:
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
    yield Case(text, [torch.randn(2, 3, 37), torch.randn(2, 3), torch.randn(37, 1)], atol=1e-6)


@POINTWISE
def one_value_read_along_two_axes() -> Iterator[Case]:
    text = """func @f(%p: i64[S]) {
      %q = neg %p
      %c = reshape %q {shape = (S, 1)}
      %m = sub %c, %q
      return %m
    }"""
    yield Case(text, [torch.randperm(11)], exact=True)


@POINTWISE
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("width", [1, 5, 37, 2500])
def norm_spelled_out(dtype: str, width: int) -> Iterator[Case]:
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
    yield Case(text, [t.to(DType(dtype).torch) for t in (x, w)], ulps=16)


@POINTWISE
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def softmax_by_two_reductions(kind: str) -> Iterator[Case]:
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
    yield Case(text, [torch.randn(5, 37, dtype=DType(kind).torch) * 5], ulps=8)


@POINTWISE
@pytest.mark.parametrize("dtype", [*INTS, "bool"])
def reductions_of_integers(dtype: str) -> Iterator[Case]:
    tests = [] if dtype == "u8" else ["any", "all"]  # torch gives uint8 for these, not bool
    lines = [f"{n} %x {{axes = (1,)}}" for n in ("sum", "amax", "amin", *tests)]
    x = sample(DType(dtype), 7, 37)
    x[0], x[1] = 0, 1
    yield Case(body(f"%x: {dtype}[A, 37]", lines), [x], exact=True)


@POINTWISE
def weighted_sum_over_a_few_elements_with_what_follows() -> Iterator[Case]:
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
    yield Case(text, tensors, atol=1e-2)


@POINTWISE
def reduction_of_strided_rows() -> Iterator[Case]:
    x = torch.randn(3, 37, 5).transpose(1, 2)
    yield Case(body("%x: f32[A, B, 37]", ["mean %x {axes = (2,)}"]), [x], atol=1e-6)


@POINTWISE
def reduction_of_what_does_not_change_along_the_row() -> Iterator[Case]:
    text = """func @f(%x: f32[A, 1], %w: f32[9]) {
      %e = expand %x {shape = (A, 9)}
      %s = sum %e {axes = (1,), keepdim = true}
      %y = add %w, %s
      return %y
    }"""
    yield Case(text, [torch.randn(3, 1), torch.randn(9)], atol=1e-6)


@POINTWISE
def a_rounded_product_is_what_is_subtracted() -> Iterator[Case]:
    """An fma would keep more of one product than of the other, and the root of that be NaN."""
    a = torch.linspace(0.1, 7, 1000)
    yield Case(
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
