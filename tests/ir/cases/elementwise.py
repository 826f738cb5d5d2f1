"""Cases of element-wise ops, of regions of them, and of ops that torch has."""

from __future__ import annotations

from typing import Any

from fuseline.ir import ops
from fuseline.ir.core import Func, Op, Opaque, Ref
from fuseline.ir.types import DType, TensorType
from tests.ir.cases.base import ALL, FLOATS, INTS, NUMBERS, Case, case

_BINARY_TYPES: dict[str, tuple[DType, ...]] = {
    **dict.fromkeys(["add", "mul", "maximum", "minimum"], ALL),
    **dict.fromkeys(["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"], ALL),
    **dict.fromkeys(["sub", "div", "floor_div", "remainder", "pow"], NUMBERS),
    **dict.fromkeys(["bitwise_and", "bitwise_or", "bitwise_xor"], (*INTS, DType.BOOL)),
}
_UNARY_TYPES: dict[str, tuple[DType, ...]] = {
    **dict.fromkeys(["neg", "abs", "sign", "relu", "floor", "ceil"], NUMBERS),
    "bitwise_not": (*INTS, DType.BOOL),
    "logical_not": ALL,
    **dict.fromkeys(
        ["exp", "sqrt", "rsqrt", "log", "log1p", "sin", "cos", "tanh", "erf", "sigmoid"], ALL
    ),
    "reciprocal": ALL,
    **dict.fromkeys(["silu", "softplus", "gelu"], FLOATS),
}


def broadcast_sizes(c: Case, count: int) -> list[list[int]]:
    full = c.shape()
    sizes: list[list[int]] = []
    for _ in range(count):
        start = c.number(0, len(full))
        sizes.append([1 if c.number(0, 3) == 0 else e for e in full[start:]])
    return sizes


@case(*_BINARY_TYPES)
def _(c: Case, op: type[Any]) -> Op:
    left, right = broadcast_sizes(c, 2)
    types = _BINARY_TYPES[op.name]
    return op(
        c.arg(c.one_of(types), left, positive=op.name == "pow"), c.arg(c.one_of(types), right)
    )


@case(*_UNARY_TYPES)
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(_UNARY_TYPES[op.name]), c.shape(), positive=True)
    return op(x, approximate=c.one_of(["none", "tanh"])) if op.name == "gelu" else op(x)


@case("cast")
def _(c: Case, op: type[Any]) -> Op:
    return op(c.arg(c.one_of(ALL), c.shape()), dtype=c.one_of(ALL))


@case("where")
def _(c: Case, op: type[Any]) -> Op:
    first, second, third = broadcast_sizes(c, 3)
    return op(c.arg(DType.BOOL, first), c.arg(c.one_of(ALL), second), c.arg(c.one_of(ALL), third))


@case("pointwise")
def _(c: Case, op: type[Any]) -> Op:
    dtype, sizes = c.one_of(FLOATS), c.shape(1)
    xs = [c.arg(dtype, sizes), c.arg(dtype, sizes[-1:])]
    body = Func("body")
    lhs, rhs = (body.add_arg(x.type, f"p{i}") for i, x in enumerate(xs))
    total = body.append(ops.pointwise.Add(lhs, rhs))
    top = body.append(ops.reduce.Amax(total.y, axes=(len(sizes) - 1,), keepdim=True))
    away = body.append(ops.pointwise.Sub(total.y, top.y))
    body.set_returns([away.y, top.y])
    return op(xs, body=body)


@case("pointwise_write")
def _(c: Case, op: type[Any]) -> Op:
    dtype, sizes = c.one_of(FLOATS), c.shape()
    buffers = [c.arg(dtype, sizes, buffer=True) for _ in range(2)]
    x = c.arg(dtype, sizes)
    body = Func("body")
    arg = body.add_arg(x.type, "p0")
    down = body.append(ops.pointwise.Neg(arg))
    body.set_returns([down.y, body.append(ops.pointwise.Add(arg, arg)).y])
    return op(buffers, [x], body=body)


@case("copy")
def _(c: Case, op: type[Any]) -> Op:
    return op(c.arg(c.one_of(ALL), c.shape()))


@case("aten.call")
def _(c: Case, op: type[Any]) -> Op:
    x = c.arg(c.one_of(FLOATS), c.shape(1))
    if c.flag():
        args = (Ref(0), (1, x.shape[0]), float("-inf"), 0.5, None, True)
        kwargs = (("dtype", DType.F32), ("device", Opaque("device", "cpu")))
        one = TensorType(DType.F32, x.shape)
        call = {"target": "aten.zeros_like.default", "args": args[:1], "kwargs": kwargs}
        return op([x], types=[one], **call)
    indices = x.tensor.with_dtype(DType.I64)
    return op([x], target="aten.sort.default", args=(Ref(0), -1, True), types=[x.tensor, indices])
