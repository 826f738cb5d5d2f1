"""fuse-pointwise: what becomes one region, and what must stay outside."""

from __future__ import annotations

import random

import pytest

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.fused import Pointwise
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Add, Cast, Exp, Mul, Neg, Tanh
from fuseline.ir.ops.reduce import Amax, Mean, Sum
from fuseline.ir.ops.view import Expand, Permute, Reshape
from fuseline.ir.region import analyse
from fuseline.ir.text import parse_func
from fuseline.ir.types import DType, symbol, tensor_type
from fuseline.passes.dce import Dce
from fuseline.passes.fuse_pointwise import FusePointwise
from fuseline.passes.manager import PassManager
from fuseline.testing import assert_no_rewrite, assert_rewrites, assert_same_values, run_passes
from tests.effort import lines_run


def fuse(text: str) -> Func:
    """The func after the pass; valid, analysable, and with the same values."""
    func = parse_func(text)
    before = func.clone()
    run_passes(FusePointwise(), func)
    for op in func.ops:
        if isinstance(op, Pointwise):
            analyse(op.body)
    assert_same_values(before, func)
    return func


def regions(func: Func) -> list[list[str]]:
    return [[op.name for op in p.body.ops] for p in func.ops if isinstance(p, Pointwise)]


def test_a_value_read_elsewhere_becomes_a_result() -> None:
    assert_rewrites(
        FusePointwise(),
        before="""func @f(%x: f32[B, 7], %w: f32[7, 7]) {
          %t = tanh %x
          %z = linear %t, %w
          %n = neg %t
          return %n, %z
        }""",
        after="""func @f(%x: f32[B, 7], %w: f32[7, 7]) {
          %t, %n = pointwise [%x] {body = func @region(%x: f32[B, 7]) {
              %t = tanh %x
              %n = neg %t
              return %t, %n
            }}
          %z = linear %t, %w
          return %n, %z
        }""",
    )


def test_no_cycle_through_what_lies_between() -> None:
    """The product needs tanh and is needed by the sum: they cannot be one op."""
    func = fuse("""func @f(%x: f32[B, 7], %w: f32[7, 7]) {
      %t = tanh %x
      %z = linear %t, %w
      %s = add %t, %z
      %u = neg %s
      return %u
    }""")
    assert regions(func) == [["add", "neg"]]


def test_constants_are_taken_in_and_may_be_shared() -> None:
    func = fuse("""func @f(%x: f32[B, 7], %z: f32[9]) {
      %k = full {value = 0.5, dtype = f32}
      %a = mul %x, %k
      %b = mul %z, %k
      return %a, %b
    }""")
    assert regions(func) == [["full", "mul"], ["full", "mul"]]
    assert not any(isinstance(op, Full) for op in func.ops)


def test_a_single_op_without_constants_stays() -> None:
    assert_no_rewrite(FusePointwise(), "func @f(%x: f32[B]) {\n %y = tanh %x\n return %y\n }", None)


def test_views_that_broadcast_are_looked_through() -> None:
    func = fuse("""func @f(%x: f32[B, S, 5], %m: f32[B, S]) {
      %n = neg %m
      %u = reshape %n {shape = (B, S, 1)}
      %e = expand %u {shape = (B, S, 5)}
      %y = mul %x, %e
      %z = exp %y
      return %z
    }""")
    assert regions(func) == [["neg", "reshape", "expand", "mul", "exp"]]


def test_other_views_stay_outside() -> None:
    func = fuse("""func @f(%x: f32[B, S, 6], %z: f32[S, B, 6]) {
      %t = tanh %x
      %n = neg %t
      %p = permute %n {dims = (1, 0, 2)}
      %y = add %p, %z
      %w = exp %y
      return %w
    }""")
    assert regions(func) == [["tanh", "neg"], ["add", "exp"]]


def test_small_cheap_operands_are_computed_inside() -> None:
    func = fuse("""func @f(%x: bf16[B, S, 6], %w: bf16[6]) {
      %one = full {value = 1.0, dtype = f32}
      %f = cast %w {dtype = f32}
      %o = add %f, %one
      %g = cast %x {dtype = f32}
      %y = mul %g, %o
      return %y
    }""")
    assert len(regions(func)) == 1
    assert len(func) == 1


def test_small_expensive_operands_are_computed_once() -> None:
    """Per element of the row they would be computed again for every row."""
    func = fuse("""func @f(%x: f32[B, S, 6], %w: f32[6]) {
      %n = neg %w
      %o = exp %n
      %y = mul %x, %o
      %z = tanh %y
      return %z
    }""")
    assert regions(func) == [["neg", "exp"], ["mul", "tanh"]]


def test_expensive_values_by_row_are_computed_inside() -> None:
    func = fuse("""func @f(%x: f32[B, S, 6], %r: f32[B, S, 1]) {
      %o = exp %r
      %y = mul %x, %o
      return %y
    }""")
    assert regions(func) == [["exp", "mul"]]


@pytest.mark.parametrize("keepdim", [True, False])
def test_reduction_with_what_comes_before_and_after(keepdim: bool) -> None:
    spread = "%u = reshape %m {shape = (B, S, 1)}\n" if not keepdim else ""
    name = "%m" if keepdim else "%u"
    func = fuse(f"""func @f(%x: bf16[B, S, 6]) {{
      %f = cast %x {{dtype = f32}}
      %q = mul %f, %f
      %m = mean %q {{axes = (2,), keepdim = {str(keepdim).lower()}}}
      {spread}
      %r = rsqrt {name}
      %y = mul %f, %r
      %c = cast %y {{dtype = bf16}}
      return %c, {name}
    }}""")
    assert len([op for op in func.ops if isinstance(op, Pointwise)]) == 1


def test_at_most_one_reduction() -> None:
    func = fuse("""func @f(%x: f32[B, 6]) {
      %a = abs %x
      %m = amax %a {axes = (1,), keepdim = true}
      %d = sub %a, %m
      %s = sum %d {axes = (1,), keepdim = true}
      %y = sub %d, %s
      return %y
    }""")
    for names in regions(func):
        assert sum(n in ("amax", "sum") for n in names) <= 1
    assert len(regions(func)) == 2


def test_reduction_over_other_dims_stays_outside() -> None:
    func = fuse("""func @f(%x: f32[B, S, 6]) {
      %a = neg %x
      %b = abs %a
      %s = sum %b {axes = (1,)}
      return %s
    }""")
    assert regions(func) == [["neg", "abs"]]


def test_an_exponential_is_not_computed_twice() -> None:
    """The spelled-out softmax: its exponentials are needed before and after the sum."""
    func = fuse("""func @f(%x: f32[B, 6]) {
      %n = neg %x
      %e = exp %n
      %s = sum %e {axes = (1,), keepdim = true}
      %y = div %e, %s
      return %y
    }""")
    for names in regions(func):
        assert not {"exp", "sum", "div"} <= set(names)


def test_integer_division_by_what_may_be_zero_stays_outside() -> None:
    func = fuse("""func @f(%x: i64[B], %z: i64[B]) {
      %one = full {value = 3, dtype = i64}
      %a = floor_div %x, %one
      %d = add %a, %z
      %n = neg %d
      return %n
    }""")
    assert regions(func) == [["full", "floor_div", "add", "neg"]]
    text = """func @f(%x: i64[B], %z: i64[B]) {
      %s = add %x, %x
      %a = floor_div %s, %z
      return %a
    }"""
    parsed = parse_func(text)
    run_passes(FusePointwise(), parsed)
    assert regions(parsed) == []


def test_limits_bound_a_region() -> None:
    lines = ["%a0 = neg %x"] + [f"%a{i} = neg %a{i - 1}" for i in range(1, 10)]
    text = "func @f(%x: f32[B]) {\n" + "\n".join(lines) + "\nreturn %a9\n}"
    func = parse_func(text)
    before = func.clone()
    run_passes(FusePointwise(max_ops=4), func)
    assert [len(names) for names in regions(func)] == [4, 4, 2]
    assert_same_values(before, func)


def test_reads_and_writes_keep_their_order() -> None:
    func = fuse("""func @f(%k: buffer<f32[7]>, %x: f32[7]) {
      %old = read %k
      %a = tanh %x
      write %k, %a
      %new = read %k
      %s = add %old, %new
      %y = neg %s
      %z = mul %a, %y
      return %z
    }""")
    assert regions(func) == [["add", "neg", "mul"]]


def _random_func(seed: int, length: int) -> Func:
    """A random func of element-wise ops, broadcasts, reductions and products."""
    rng = random.Random(seed)
    func = Func("f")
    b = symbol("B")
    values: list[Value] = [
        func.add_arg(tensor_type(DType.F32, b, 5, 6), "x"),
        func.add_arg(tensor_type(DType.F32, b, 5, 6), "y"),
        func.add_arg(tensor_type(DType.BF16, b, 5, 1), "r"),
        func.add_arg(tensor_type(DType.F32, 6), "w"),
        func.add_arg(tensor_type(DType.F32, b, 5), "m"),
    ]
    weight = func.add_arg(tensor_type(DType.F32, 6, 6), "p")
    for _ in range(length):
        value = _random_op(func, rng, values, weight)
        if value is not None:
            values.append(value)
    func.set_returns(rng.sample(values[5:], min(4 + length // 20, len(values) - 5)))
    run_passes(Dce(), func)
    return func


def _random_op(func: Func, rng: random.Random, values: list[Value], weight: Value) -> Value | None:
    x, z = rng.choice(values[-8:]), rng.choice([*values[:4], *values[-16:]])
    wide = x.shape[2:] == (6,)
    match rng.randrange(11):
        case 0 | 1 | 2 if z.tensor.rank != 2 and x.tensor.rank != 2:
            return func.append(rng.choice([Add, Mul])(x, z)).y
        case 3 | 4:
            return func.append(rng.choice([Neg, Tanh])(x)).y
        case 5:
            return func.append(Cast(x, dtype=rng.choice([DType.F32, DType.BF16]))).y
        case 6 if wide:
            keep = rng.random() < 0.7
            return func.append(rng.choice([Sum, Mean, Amax])(x, axes=(2,), keepdim=keep)).y
        case 7 if x.tensor.rank == 2:
            return func.append(Reshape(x, shape=(*x.shape, 1))).y
        case 8 if x.tensor.rank == 3 and x.shape[-1] == 1:
            return func.append(Expand(x, shape=(*x.shape[:2], 6))).y
        case 9 if wide and x.dtype is DType.F32:
            return func.append(Linear(x, weight, None)).y
        case 10 if wide:
            swapped = func.append(Permute(x, dims=(0, 2, 1))).y
            back = func.append(Exp(func.append(Neg(func.append(Tanh(swapped)).y)).y)).y
            return func.append(Permute(back, dims=(0, 2, 1))).y
        case _:
            return None


@pytest.mark.parametrize("seed", range(40))
def test_random_funcs_keep_their_values(seed: int) -> None:
    func = _random_func(seed, 40)
    before = func.clone()
    run_passes(FusePointwise(), func)
    for op in func.ops:
        if isinstance(op, Pointwise):
            analyse(op.body)
    assert_same_values(before, func, sizes={"B": 3})


def _effort(length: int) -> tuple[int, int]:
    func = _random_func(7, length)
    count = len(func)
    return count, lines_run(lambda: PassManager([FusePointwise()]).run(func))


def test_the_work_grows_with_the_number_of_ops() -> None:
    _effort(650)  # fills caches
    few, short = _effort(650)
    many, long = _effort(2600)
    assert many > 3.5 * few > 750
    assert long < 1.3 * many / few * short
