"""Element-wise ops against torch: odd values, signs, promotion, no elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.ir.core import Op, Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.create import Full
from fuseline.ir.types import DType
from tests.exporting.onnx.running import assert_as_torch, func_of, seeded

NAN, INF = float("nan"), float("inf")
ODD = torch.tensor([NAN, INF, -INF, -0.0, 0.0, 1.0, -1.0, 1e-7, -2.5, 0.5, 3.75, 25.0, -25.0])
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float32, torch.float64, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-11, torch.float16: 1e-3}
"""Of functions that each library computes in its own way."""

UNARY = [
    p.Neg, p.Abs, p.Floor, p.Ceil, p.Sign, p.Relu, p.Exp, p.Log, p.Log1p, p.Sqrt, p.Rsqrt,
    p.Reciprocal, p.Sin, p.Cos, p.Tanh, p.Erf, p.Sigmoid, p.Silu, p.Softplus, p.Gelu, p.LogicalNot,
]  # fmt: skip
FINITE = (p.Silu, p.Gelu, p.Sin, p.Cos)
"""Ops that give NaN at infinity in one library and 0 in another."""


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", UNARY, ids=lambda op: op.name)
def test_unary(op: type[Any], dtype: torch.dtype) -> None:
    x = ODD.to(dtype)
    if op in FINITE:
        x = x[~x.isinf()]
    for tensor in (x, x.new_empty(0, 5)):
        assert_as_torch(func_of(op, [tensor]), [tensor], atol=1e-7, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", INTS, ids=str)
@pytest.mark.parametrize("op", [p.Neg, p.Abs, p.Floor, p.Ceil, p.Sign, p.Relu, p.BitwiseNot])
def test_unary_of_integers(op: type[Any], dtype: torch.dtype) -> None:
    x = seeded(3, 5, dtype=dtype)
    assert_as_torch(func_of(op, [x]), [x])


@pytest.mark.parametrize("dtype", [*INTS, torch.bool], ids=str)
@pytest.mark.parametrize("op", [p.Exp, p.Sqrt, p.Sigmoid, p.Rsqrt, p.Tanh], ids=lambda op: op.name)
def test_floats_of_integers(op: type[Any], dtype: torch.dtype) -> None:
    x = seeded(3, 5, dtype=dtype)
    assert_as_torch(func_of(op, [x]), [x], atol=1e-7, rtol=2e-6)


def test_gelu_by_tanh() -> None:
    def gelu(x: Value) -> Op:
        return p.Gelu(x, approximate="tanh")

    x = seeded(7, 11) * 3
    assert_as_torch(func_of(gelu, [x]), [x], atol=1e-6)


def test_small_numbers_keep_their_log1p() -> None:
    x = torch.tensor([1e-30, -1e-30, 1e-8, -1e-8, 3e-5, -0.4999, 0.4999, 1e30])
    assert_as_torch(func_of(p.Log1p, [x]), [x], rtol=5e-7)


ARITHMETIC = [p.Add, p.Sub, p.Mul, p.Maximum, p.Minimum]
PAIRS = [(a, b) for a in (-7, -1, 0, 1, 5, 7) for b in (-3, -2, 2, 3)]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS], ids=str)
@pytest.mark.parametrize("op", ARITHMETIC, ids=lambda op: op.name)
def test_arithmetic(op: type[Any], dtype: torch.dtype) -> None:
    lhs, rhs = seeded(4, 1, 7, dtype=dtype), seeded(5, 1, dtype=dtype, seed=1)
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs])


@pytest.mark.parametrize("op", [p.Add, p.Mul, p.Maximum, p.Minimum], ids=lambda op: op.name)
def test_arithmetic_of_bools(op: type[Any]) -> None:
    lhs, rhs = seeded(4, 7, dtype=torch.bool), seeded(7, dtype=torch.bool, seed=1)
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs])


@pytest.mark.parametrize("op", [*ARITHMETIC, p.Div, p.Lt, p.Ge, p.Eq, p.Ne], ids=lambda o: o.name)
def test_odd_values(op: type[Any]) -> None:
    lhs, rhs = ODD[:, None].clone(), ODD[None].clone()
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs])


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS[:4]], ids=str)
@pytest.mark.parametrize("op", [p.FloorDivide, p.Remainder], ids=lambda op: op.name)
def test_signs_of_quotients_and_remainders(op: type[Any], dtype: torch.dtype) -> None:
    lhs, rhs = (torch.tensor(side, dtype=dtype) for side in zip(*PAIRS, strict=True))
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs])


@pytest.mark.parametrize("op", [p.FloorDivide, p.Remainder], ids=lambda op: op.name)
def test_quotients_and_remainders_of_odd_values(op: type[Any]) -> None:
    lhs, rhs = ODD[:, None].clone(), ODD[None].clone()
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs], rtol=1e-7)


def test_quotients_that_rounding_would_lift() -> None:
    lhs, rhs = torch.tensor([1.0, 0.3, 6.9999995, -0.3]), torch.tensor([0.1, 0.1, 1.0, 0.1])
    assert_as_torch(func_of(p.FloorDivide, [lhs, rhs]), [lhs, rhs])


@pytest.mark.parametrize("number", [2.0, 3.0, 0.5, -0.5, -1.0, -2.0, 1.7, 4.0])
def test_powers_by_a_number(number: float) -> None:
    x = torch.cat([ODD, seeded(20)])
    func = func_of(p.Neg, [x])
    (arg,) = func.args
    exponent = func.append(Full(value=number, dtype=arg.dtype)).y
    func.set_returns([func.append(p.Pow(arg, exponent)).y])
    assert_as_torch(func, [x], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int32], ids=str)
def test_powers_by_a_tensor(dtype: torch.dtype) -> None:
    lhs, rhs = seeded(5, 3, dtype=dtype), seeded(3, dtype=dtype, seed=1).abs()
    assert_as_torch(func_of(p.Pow, [lhs, rhs]), [lhs, rhs], rtol=2e-6)


COMPARE = [p.Eq, p.Ne, p.Lt, p.Le, p.Gt, p.Ge, p.LogicalAnd, p.LogicalOr]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, torch.bool], ids=str)
@pytest.mark.parametrize("op", COMPARE, ids=lambda op: op.name)
def test_comparisons(op: type[Any], dtype: torch.dtype) -> None:
    lhs, rhs = seeded(9, 7, dtype=dtype), seeded(7, dtype=dtype, seed=1)
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs])


@pytest.mark.parametrize("dtype", [*INTS, torch.bool], ids=str)
@pytest.mark.parametrize("op", [p.BitwiseAnd, p.BitwiseOr, p.BitwiseXor], ids=lambda op: op.name)
def test_bits(op: type[Any], dtype: torch.dtype) -> None:
    lhs, rhs = seeded(9, 7, dtype=dtype), seeded(7, dtype=dtype, seed=1)
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs])


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, torch.bool], ids=str)
def test_where(dtype: torch.dtype) -> None:
    condition, lhs = seeded(5, 1, dtype=torch.bool), seeded(5, 7, dtype=dtype)
    rhs = seeded(7, dtype=dtype, seed=1)
    assert_as_torch(func_of(p.Where, [condition, lhs, rhs]), [condition, lhs, rhs])


PROMOTED: list[tuple[Tensor, Tensor]] = [
    (seeded(5, dtype=torch.int8), seeded(5, dtype=torch.uint8)),
    (seeded(5, dtype=torch.int32), seeded(5)),
    (seeded(5, dtype=torch.bool), seeded(5, dtype=torch.int16)),
    (seeded(5, dtype=torch.float16), torch.tensor(2.7182817)),
    (seeded(5, dtype=torch.float32), torch.tensor(3, dtype=torch.int64)),
    (seeded(5, dtype=torch.int8), torch.tensor(300, dtype=torch.int64)),
]


@pytest.mark.parametrize("op", [p.Add, p.Mul, p.Div, p.Lt], ids=lambda op: op.name)
@pytest.mark.parametrize(("lhs", "rhs"), PROMOTED)
def test_promotion(op: Callable[..., Op], lhs: Tensor, rhs: Tensor) -> None:
    rtol = 1e-3 if lhs.dtype is torch.float16 else 0.0
    assert_as_torch(func_of(op, [lhs, rhs]), [lhs, rhs], rtol=rtol)


@pytest.mark.parametrize("want", [*DType], ids=str)
@pytest.mark.parametrize("have", [*FLOATS, *INTS, torch.bool], ids=str)
def test_casts(have: torch.dtype, want: DType) -> None:
    def to(x: Value) -> Op:
        return p.Cast(x, dtype=want)

    x = seeded(5, 3, dtype=have)
    x = x.abs() if want is DType.U8 and have is not torch.bool else x
    if want is DType.BF16:  # no runtime's arrays have it: there and back again
        func = func_of(to, [x])
        back = func.append(p.Cast(func.returns[0], dtype=DType.F32))
        func.set_returns([back.y])
        assert_as_torch(func, [x])
        return
    assert_as_torch(func_of(to, [x]), [x])
