"""Views, reductions, indexing and products against torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops import index as i
from fuseline.ir.ops import reduce as r
from fuseline.ir.ops import view as v
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.matmul import GroupedMatmul, Linear, Matmul, Sdpa
from fuseline.ir.types import DType, IntType, floor_div, symbol
from tests.exporting.onnx.running import (
    assert_as_torch,
    built,
    by_onnxruntime,
    func_of,
    onnx_of,
    seeded,
)

DTYPES = [torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.int8,
          torch.uint8, torch.bool]  # fmt: skip
FLOATS = DTYPES[:3]


Make = Callable[[Sequence[Value]], Op]

# -- views ----------------------------------------------------------------------------------

S5, S7 = symbol("s5"), symbol("s7")
RESHAPES: list[tuple[tuple[int, ...], tuple[Any, ...]]] = [
    ((5, 7, 6), (S5, S7, 2, 3)),
    ((5, 7, 6), (S5 * S7, 6)),
    ((5, 7, 6), (S5, 6 * S7)),
    ((5, 7, 6), (S7, S5, 6)),
    ((5, 7), (S5 * S7,)),
    ((5, 7), (1, S5, 1, S7)),
    ((1, 1), ()),
    ((0, 7), (S7, 0)),
]


@pytest.mark.parametrize(("have", "want"), RESHAPES, ids=str)
def test_reshape(have: tuple[int, ...], want: tuple[Any, ...]) -> None:
    x = seeded(*have)
    func = built(lambda g: v.Reshape(g[0], shape=want), [x])
    assert_as_torch(func, [x])


def test_a_reshape_of_nothing() -> None:
    """A size that happens to be 0 in a call is no size to be copied or inferred."""
    func = built(lambda g: v.Reshape(g[0], shape=(S7, S5, 3)), [seeded(5, 7, 3)])
    empty = seeded(0, 7, 3)
    (found,) = by_onnxruntime(onnx_of(func), [empty]) or []
    assert found.shape == (7, 0, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rearranged(dtype: torch.dtype) -> None:
    x = seeded(4, 5, 6, dtype=dtype)
    cases: list[Make] = [
        lambda g: v.Permute(g[0], dims=(2, 0, 1)),
        lambda g: v.Slice(g[0], axis=1, start=1, stop=4),
        lambda g: v.Slice(g[0], axis=2, start=1, stop=6, step=2),
        lambda g: v.Slice(g[0], axis=1, start=S5 - 2, stop=S5),
        lambda g: v.Slice(g[0], axis=1, start=0, stop=floor_div(S5, 2)),
        lambda g: v.Concat((g[0], g[0]), axis=2),
        lambda g: v.Expand(g[0], shape=(3, *g[0].shape)),
    ]
    if dtype is not torch.uint8 and dtype is not torch.int8:
        cases.append(lambda g: v.Pad(g[0], axis=1, before=2, after=S5, value=1.0))
    for make in cases:
        assert_as_torch(built(make, [x]), [x])


def test_expand_of_ones() -> None:
    x = seeded(5, 1, 1)
    assert_as_torch(built(lambda g: v.Expand(g[0], shape=(2, S5, S5, 3)), [x]), [x])


def test_concat_promotes() -> None:
    x, y = seeded(4, 3, dtype=torch.int32), seeded(4, 5)
    assert_as_torch(built(lambda g: v.Concat((g[0], g[1]), axis=1), [x, y]), [x, y])


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.bool], ids=str)
def test_made_of_nothing(dtype: torch.dtype) -> None:
    """Numbers, and ranges of them, that sizes say."""
    x, kind = seeded(5, 7), DType.from_torch(dtype)
    cases: list[Make] = [
        lambda g: Full(value=3, shape=(S5, 2), dtype=kind),
        lambda g: Full(value=S5 * 2, shape=(2, S7), dtype=kind),
        lambda g: Full(value=1, dtype=kind),
        lambda g: Iota(length=S7, dtype=kind),
        lambda g: Iota(length=S7, start=2, step=3, dtype=kind),
        lambda g: Iota(length=S7, start=S5, step=-1, dtype=kind),
    ]
    if kind.is_float:
        cases.append(lambda g: Iota(length=S7, start=0.5, step=0.1, dtype=kind))
    for make in cases:
        assert_as_torch(built(make, [x]), [x], back=False)


SIZES: list[Any] = [
    floor_div(S5, 2), floor_div(S5 - 9, 2), S5 % 3, S5**2 + S5 * S7, floor_div(S5 * S7 + 2, 4),
    (S5**2 + S5) / 2, S5 - S7,
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_arithmetic_of_sizes(size: Any) -> None:
    """Negative ones are rounded down, as in Python."""
    x = seeded(5, 7)
    func = built(lambda g: Full(value=size, dtype=DType.I64), [x])
    assert_as_torch(func, [x], back=False)


def test_an_integer_is_an_input() -> None:
    func = Func("case")
    func.add_arg(IntType(symbol("n")), "n")
    func.set_returns([func.append(Iota(length=symbol("n"))).y])
    (found,) = by_onnxruntime(onnx_of(func), [torch.tensor(4)]) or []
    assert torch.equal(found, torch.arange(4))


# -- reductions -----------------------------------------------------------------------------

REDUCE = [r.Sum, r.Mean, r.Amax, r.Amin, r.Any, r.All]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", REDUCE, ids=lambda op: op.name)
def test_reductions(op: type[Any], dtype: torch.dtype) -> None:
    if op is r.Mean and not dtype.is_floating_point:
        return
    x = seeded(4, 5, 6, dtype=dtype)
    for axes, keepdim in (((1,), False), ((0, 2), True), ((), False), ((0, 1, 2), False)):
        func = built(lambda g, a=axes, k=keepdim: op(g[0], axes=a, keepdim=k), [x])
        assert_as_torch(func, [x], atol=2e-6, rtol=1e-3 if dtype is torch.float16 else 2e-6)


@pytest.mark.parametrize("op", REDUCE, ids=lambda op: op.name)
def test_reductions_of_odd_values(op: type[Any]) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[1.0, nan, 2.0], [inf, 1.0, -inf], [-inf, -inf, -inf], [0.0, 0.0, -0.0]])
    assert_as_torch(built(lambda g: op(g[0], axes=(1,)), [x]), [x])


@pytest.mark.parametrize("op", [r.Sum, r.Any, r.All], ids=lambda op: op.name)
def test_reductions_of_nothing(op: type[Any]) -> None:
    x = seeded(4, 0)
    assert_as_torch(built(lambda g: op(g[0], axes=(1,)), [x]), [x])


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_selection(dtype: torch.dtype) -> None:
    """Elements are distinct: among equal ones torch takes any."""
    g = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randperm(11, generator=g) for _ in range(5)]).to(dtype)
    cases: list[Make] = [
        lambda g: r.TopK(g[0], k=4, axis=1),
        lambda g: r.TopK(g[0], k=3, axis=1, largest=False),
        lambda g: r.Sort(g[0], axis=1),
        lambda g: r.Sort(g[0], axis=1, descending=True),
        lambda g: r.Argmax(g[0], axis=1),
        lambda g: r.Argmax(g[0], axis=0, keepdim=True),
    ]
    for make in cases:
        assert_as_torch(built(make, [x]), [x])


@pytest.mark.parametrize("descending", [False, True])
def test_a_sort_keeps_the_order_of_equals(descending: bool) -> None:
    x = seeded(3, 41, dtype=torch.int64) % 4
    assert_as_torch(built(lambda g: r.Sort(g[0], axis=1, descending=descending), [x]), [x])


def test_the_first_of_the_largest() -> None:
    nan = float("nan")
    x = torch.tensor([[1.0, 3.0, 3.0], [1.0, nan, 5.0], [nan, nan, 0.0], [-1.0, -1.0, -2.0]])
    assert_as_torch(built(lambda g: r.Argmax(g[0], axis=1), [x]), [x])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cumsum(dtype: torch.dtype) -> None:
    x = seeded(5, 7, dtype=dtype)
    rtol = 2e-3 if dtype is torch.float16 else 1e-6
    for axis in (0, 1):
        assert_as_torch(built(lambda g, a=axis: r.Cumsum(g[0], axis=a), [x]), [x], atol=1e-6,
                        rtol=rtol)  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_softmax(dtype: torch.dtype) -> None:
    x = seeded(5, 7, dtype=dtype)
    x[0, :3], x[1] = float("-inf"), float("-inf")
    for axis in (0, 1):
        assert_as_torch(built(lambda g, a=axis: r.Softmax(g[0], axis=a), [x]), [x], atol=1e-6,
                        rtol=1e-3 if dtype is torch.float16 else 1e-5)  # fmt: skip


# -- indices --------------------------------------------------------------------------------

PLACES = torch.tensor([[0, 3, -1], [2, 2, 1]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_by_index(dtype: torch.dtype) -> None:
    x, at = seeded(4, 5, 6, dtype=dtype), PLACES
    rows = seeded(4, 3, dtype=dtype)
    cases: list[tuple[Make, list[Any]]] = [
        (lambda g: i.Embedding(*g), [rows, at.abs()]),
        (lambda g: i.Index(g[0], (g[1],), axes=(1,)), [x, at]),
        (lambda g: i.Index(g[0], (g[1], g[2]), axes=(0, 1)), [x, at, at[:1]]),
        (lambda g: i.Index(g[0], (g[1], g[2]), axes=(1, 2)), [x, at, at[:, :1]]),
        (lambda g: i.Index(g[0], (g[1], g[2]), axes=(0, 2)), [x, at, at]),
        (lambda g: i.IndexSelect(g[0], g[1], axis=2), [x, at[1]]),
        (lambda g: i.Gather(g[0], g[1], axis=1), [x, at.abs().expand(4, 2, 3)]),
        (lambda g: i.Index(g[0], (g[1],), axes=(0,)), [x, torch.tensor(-2)]),
        (lambda g: i.Index(g[0], (g[1],), axes=(0,)), [x, at[0].int()]),
        (lambda g: i.Index(g[0], (g[1],), axes=(0,)), [x, at[:0]]),
    ]
    for make, tensors in cases:
        given = [t.contiguous() for t in tensors]
        assert_as_torch(built(make, given), given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_by_index(dtype: torch.dtype) -> None:
    x, at = seeded(4, 5, 6, dtype=dtype), torch.tensor([3, 0, 1])
    src = seeded(4, 3, 6, dtype=dtype, seed=1)
    each = at[None, :, None].expand(4, 3, 6)
    cases: list[tuple[Make, list[Any]]] = [
        (lambda g: i.IndexCopy(g[0], g[1], g[2], axis=1), [x, at, src]),
        (lambda g: i.IndexCopy(g[0], g[1], g[2], axis=0), [x, at, x[:3]]),
        (lambda g: v_slice(g[0], g[1], 1, 4, 1), [x, src]),
        (lambda g: v_slice(g[0], g[1], 0, 5, 2), [x, src]),
        (lambda g: v_slice(g[0], g[1], 0, 5, 1), [x, x.flip(1)]),
        (lambda g: i.Scatter(g[0], g[1], g[2], axis=1), [x, each, src]),
        (lambda g: i.Scatter(g[0], g[1], g[2], axis=1), [x, each, src[:1, :1, :1]]),
        (lambda g: i.IndexPut(g[0], (g[1],), g[2], axes=(1,)), [x, at, src]),
        (lambda g: i.IndexPut(g[0], (g[1], g[1]), g[2], axes=(0, 1)), [x, at, src[0]]),
        (lambda g: i.IndexPut(g[0], (g[1], g[1]), g[2], axes=(1, 2)), [x, at, src[:, :, 0]]),
        (lambda g: i.IndexPut(g[0], (g[1], g[1]), g[2], axes=(0, 2)), [x, at, src[:3, :1, 0]]),
    ]  # fmt: skip
    for make, tensors in cases:
        given = [t.contiguous() for t in tensors]
        assert_as_torch(built(make, given), given)


def v_slice(x: Value, src: Value, start: int, stop: int, step: int) -> Op:
    return i.SliceScatter(x, src, axis=1, start=start, stop=stop, step=step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_index_put_adds(dtype: torch.dtype) -> None:
    given = [seeded(4, 5, dtype=dtype), torch.tensor([3, 3, 0]), seeded(3, 5, dtype=dtype)]
    func = built(lambda g: i.IndexPut(g[0], (g[1],), g[2], axes=(0,), accumulate=True), given)
    assert_as_torch(func, given, rtol=1e-6, atol=1e-6)


# -- products -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lead", [(), (4,), (4, 5), (1, 1), (0, 5)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(lead: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    given = [seeded(*lead, 13, dtype=dtype), seeded(11, 13, dtype=dtype, seed=1)]
    given += [seeded(11, dtype=dtype, seed=2)] if bias else []
    rtol = 2e-3 if dtype is torch.float16 else 1e-5
    assert_as_torch(func_of(Linear, given), given, rtol=rtol, atol=rtol)


def test_a_turned_weight_is_not_turned_again() -> None:
    x, weight = seeded(3, 5, 13), seeded(13, 11)
    func = built(lambda g: Matmul(g[0], g[1]), [x, weight])
    turned = func.append(v.Permute(func.args[1], dims=(1, 0))).y
    func.set_returns([func.append(Linear(func.args[0], turned, None)).y])
    model = assert_as_torch(func, [x, weight], rtol=1e-5, atol=1e-5)
    assert [n.op_type for n in model.graph.node] == ["MatMul"]


def test_a_weight_whose_dims_stay_is_turned() -> None:
    x, weight = seeded(3, 5, 13), seeded(13, 13)
    func = built(lambda g: v.Permute(g[1], dims=(0, 1)), [x, weight])
    same = func.returns[0]
    func.set_returns([func.append(Linear(func.args[0], same, None)).y])
    assert_as_torch(func, [x, weight], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_matmul(dtype: torch.dtype) -> None:
    given = [seeded(1, 5, 4, 13, dtype=dtype), seeded(3, 1, 13, 7, dtype=dtype, seed=1)]
    rtol = 2e-3 if dtype is torch.float16 else 1e-5
    assert_as_torch(func_of(Matmul, given), given, rtol=rtol, atol=rtol)


def test_grouped_matmul() -> None:
    x, weight = seeded(11, 8), seeded(3, 8, 6, seed=1)
    for ends in ([4, 4, 9], [0, 0, 11], [0, 0, 0]):
        given = [x, weight, torch.tensor(ends, dtype=torch.int32)]
        assert_as_torch(func_of(GroupedMatmul, given), given, rtol=1e-5, atol=1e-5,
                        back=False)  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
def test_sdpa(causal: bool) -> None:
    given = [seeded(2, 4, 5, 8), seeded(2, 4, 7, 8, seed=1), seeded(2, 4, 7, 6, seed=2)]
    func = built(lambda g: Sdpa(g[0], g[1], g[2], None, is_causal=causal), given)
    assert_as_torch(func, given, rtol=1e-5, atol=1e-5)
