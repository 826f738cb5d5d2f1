"""Element-wise funcs and values for tests of any target, and how close results must be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fuseline.ir.types import DType

FLOATS = ("f64", "f32", "bf16", "f16")
INTS = ("i64", "i32", "i16", "i8", "u8")
FLOAT_UNARY = (
    "neg", "abs", "floor", "ceil", "sign", "relu", "exp", "log", "log1p", "sqrt", "rsqrt",
    "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "softplus", "logical_not",
)  # fmt: skip
FLOAT_BINARY = (
    "add", "sub", "mul", "div", "floor_div", "remainder", "pow", "maximum", "minimum",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or",
)  # fmt: skip
INT_BINARY = (
    "add", "sub", "mul", "div", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "pow",
)  # fmt: skip
BOOL_BINARY = (
    "add", "mul", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor", "eq", "ne",
    "logical_and", "logical_or", "lt", "ge",
)  # fmt: skip


def body(arguments: str, lines: list[str]) -> str:
    """A func that returns the result of each line."""
    named = [f"%y{i} = {line}" for i, line in enumerate(lines)]
    returns = ", ".join(f"%y{i}" for i in range(len(lines)))
    return "\n".join([f"func @f({arguments}) {{", *named, f"return {returns}", "}"])


def assert_close(got: Tensor, want: Tensor, *, exact: bool, ulps: float, atol: float = 0.0) -> None:
    assert got.dtype == want.dtype
    if exact or not want.dtype.is_floating_point:
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        return
    unit, tiny = torch.finfo(want.dtype).eps, torch.finfo(want.dtype).tiny
    slack = 1.01 if want.dtype.itemsize == 2 else ulps
    torch.testing.assert_close(
        got, want, rtol=slack * unit, atol=atol + tiny * ulps, equal_nan=True
    )


def sample(dtype: DType, *shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Seeded values of a dtype, the special floating ones among them where there is room."""
    g = torch.Generator().manual_seed(seed)
    if dtype is DType.BOOL:
        return torch.rand(shape, generator=g) < 0.5
    if not dtype.is_float:
        low = 0 if dtype is DType.U8 else -9
        return torch.randint(low, 10, shape, generator=g).to(dtype.torch)
    x = torch.randn(shape, generator=g, dtype=torch.float64) * scale
    inf, nan = float("inf"), float("nan")
    special = torch.tensor([0.0, -0.0, inf, -inf, nan, 1.0, -1.0, 0.5], dtype=torch.float64)
    flat = x.reshape(-1)
    if flat.numel() > 4 * special.numel():
        flat[:: flat.numel() // 8][:8] = special
    return x.to(dtype.torch)


PROMOTIONS = [
    ("bf16", "f32"), ("f16", "bf16"), ("i64", "f32"), ("i32", "bf16"), ("bool", "f16"),
    ("bool", "i32"), ("i8", "u8"), ("f32", "f64"), ("i64", "i32"),
]  # fmt: skip

BASE = torch.arange(2 * 3 * 4 * 5 * 7, dtype=torch.float32).reshape(2, 3, 4, 35)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t,
    "permuted": lambda t: t.permute(0, 2, 1, 3),
    "transposed": lambda t: t.permute(3, 1, 0, 2),
    "sliced": lambda t: t[:, :, 1:3, 2:33],
    "stepped": lambda t: t[:, ::2, :, ::3],
    "expanded": lambda t: t[:, :1, :, :1].expand(2, 3, 4, 9),
    "one": lambda t: t[:1, :1, :1, :1],
    "empty": lambda t: t[:, :0],
}
