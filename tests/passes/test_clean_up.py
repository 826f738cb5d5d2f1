"""The clean-up as a whole: random programs keep every bit, and large ones take little time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseline.ir import ops
from fuseline.ir.core import Func, Op, Value
from fuseline.ir.text import print_func
from fuseline.ir.types import DType, symbol, tensor_type
from fuseline.ir.verify import verify
from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.fold_constants import FoldConstants
from fuseline.passes.manager import PassManager
from fuseline.passes.raise_gated_mlp import RaiseGatedMlp
from fuseline.passes.raise_layer_norm import RaiseLayerNorm
from fuseline.passes.raise_rms_norm import RaiseRmsNorm
from fuseline.passes.raise_rope import RaiseRope
from fuseline.passes.restore_mutations import RestoreMutations
from fuseline.passes.rewrite import Pass
from fuseline.testing import assert_same_values, run_passes
from tests.effort import lines_run

p, v = ops.pointwise, ops.view
Draw = Callable[[st.SearchStrategy[Any]], Any]

_UNARY = (p.Neg, p.Abs, p.Exp, p.Sin, p.Relu, p.Silu, p.Sigmoid)
_BINARY = (p.Add, p.Sub, p.Mul, p.Maximum, p.Minimum)
_SCALARS = (0, 1, -1, 2, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3)


def clean_up() -> list[Pass]:
    """The passes under test, in the order of the pipeline."""
    return [FoldConstants(), Canonicalize(), Cse(), Dce()]


def _grow(draw: Draw, pool: list[Value]) -> Op:
    x: Value = draw(st.sampled_from(pool))
    rank = x.tensor.rank
    same = [y for y in pool if y.shape == x.shape]
    other: Value = draw(st.sampled_from(same))
    match draw(st.integers(0, 11)):
        case 0 if x.dtype.is_float:
            return draw(st.sampled_from(_UNARY))(x)
        case 1 | 2 if x.dtype is not DType.BOOL and other.dtype is not DType.BOOL:
            return draw(st.sampled_from(_BINARY))(x, other)
        case 3 if x.dtype is not DType.BOOL:
            value = draw(st.sampled_from(_SCALARS))
            kind = DType.F64 if isinstance(value, float) else DType.I64
            scalar = ops.create.Full(value=value, dtype=kind).y
            sides = (scalar, x) if draw(st.booleans()) else (x, scalar)
            return draw(st.sampled_from(_BINARY))(*sides)
        case 4 if x.dtype.is_float:
            value = draw(st.sampled_from([2.0, 1.0, 0.5, -0.5, -1.0, 3.0]))
            return p.Pow(x, ops.create.Full(value=value, dtype=DType.F64).y)
        case 5:
            kinds = [DType.F32, DType.BF16, DType.F16, DType.F64]
            return p.Cast(x, dtype=draw(st.sampled_from(kinds)))
        case 6:
            return v.Permute(x, dims=draw(st.permutations(range(rank))))
        case 7:
            shape = (*x.shape[: rank // 2], 1, *x.shape[rank // 2 :])
            return v.Reshape(x, shape=[d for d in shape if d != 1 or draw(st.booleans())])
        case 8 if rank and isinstance(x.shape[-1], int) and x.shape[-1] > 1:
            stop = draw(st.integers(1, x.shape[-1]))
            return v.Slice(x, axis=rank - 1, start=draw(st.integers(0, stop - 1)), stop=stop)
        case 9:
            return v.Expand(x, shape=(2, *x.shape))
        case 10 if x.dtype is DType.BOOL and other.dtype is DType.BOOL:
            kinds = (p.BitwiseAnd, p.BitwiseOr, p.LogicalAnd)
            return draw(st.sampled_from(kinds))(x, other)
        case 10:
            return p.Lt(x, other)
        case _:
            masks = [y for y in same if y.dtype is DType.BOOL]
            return p.Where(draw(st.sampled_from(masks)), x, other) if masks else p.Ge(x, other)


@st.composite
def programs(draw: Draw) -> Func:
    """A func of up to 14 random ops over a few small arguments, all leaves returned."""
    func = Func("f")
    b = symbol("B")
    pool = [
        func.add_arg(tensor_type(kind, *shape), f"x{i}")
        for i, (kind, shape) in enumerate(
            [
                (DType.F32, (b, 4)),
                (DType.BF16, (b, 4)),
                (DType.F16, (b, 4)),
                (DType.BOOL, (b, 4)),
                (DType.I64, (b, 4)),
                (DType.F32, (4,)),
            ]
        )
    ]
    for _ in range(draw(st.integers(1, 14))):
        op = _grow(draw, pool)
        for made in op.operands:
            if made.owner is not None and made.owner not in func:
                func.append(made.owner)
        pool.append(func.append(op).results[0])
    func.set_returns([value for value in pool if not func.users(value)])
    return func


@given(programs())
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_programs_keep_every_bit(func: Func) -> None:
    verify(func)
    cleaned = func.clone()
    run_passes(clean_up(), cleaned)
    assert_same_values(func, cleaned, exact=True)
    again = cleaned.clone()
    run_passes(clean_up(), again)
    assert print_func(again) == print_func(cleaned), "a second clean-up finds more to do"


@given(programs())
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_raising_takes_any_program(func: Func) -> None:
    """Whatever it finds, or nothing: no pass fails on valid IR."""
    raised = func.clone()
    norms: list[Pass] = [RaiseLayerNorm(), RaiseRmsNorm(), RaiseRope(), RaiseGatedMlp()]
    run_passes([*norms, RestoreMutations()], raised)
    assert_same_values(func, raised, exact=True)


def _layer(func: Func, x: Value, weight: Value) -> Value:
    """About a hundred ops as tracing leaves them: casts, views, scalars, dead and double code."""

    def add(op: Op) -> Value:
        return func.append(op).results[0]

    def scalar(value: float) -> Value:
        return add(ops.create.Full(value=value, dtype=DType.F64))

    for _ in range(6):
        wide = add(p.Cast(x, dtype=DType.F32))
        power = add(p.Pow(wide, scalar(2.0)))
        mean = add(ops.reduce.Mean(power, axes=(2,), keepdim=True))
        root = add(p.Pow(add(p.Add(mean, scalar(1e-6))), scalar(-0.5)))
        normal = add(p.Cast(add(p.Mul(wide, root)), dtype=DType.BF16))
        y = add(p.Mul(scalar(1.0), add(p.Mul(weight, normal))))
        b, s, d = (*x.shape[:2], 64)
        heads = add(v.Reshape(add(v.Reshape(y, shape=(b, s, 1, d))), shape=(b, s, 4, 16)))
        turned = add(v.Permute(add(v.Permute(heads, dims=(0, 2, 1, 3))), dims=(0, 2, 1, 3)))
        add(p.Exp(turned))
        x = add(p.Add(x, add(v.Reshape(turned, shape=(b, s, d)))))
    return x


def test_the_work_grows_with_the_number_of_layers() -> None:
    """Of about 100 ops each."""

    def effort(layers: int) -> tuple[int, int]:
        func = Func("f")
        x = func.add_arg(tensor_type(DType.BF16, symbol("B"), symbol("S"), 64), "x")
        weight = func.add_arg(tensor_type(DType.BF16, 64), "w")
        for _ in range(layers):
            x = _layer(func, x, weight)
        func.set_returns([x])
        return len(func), lines_run(lambda: PassManager(clean_up()).run(func))

    effort(8)  # fills caches
    few, short = effort(8)
    many, long = effort(24)
    assert many == 3 * few > 2000
    assert long < 1.3 * many / few * short
