"""One op by itself, on memory of its own: it does what it does in a program, and harms nothing.

On the CPU, with its kernels: what is timed on a GPU goes the same way.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fuseline.assemble import askew_arguments, packed_operands
from fuseline.choose.trial import Trial
from fuseline.codegen import lowerings
from fuseline.codegen.lower import Emitted, emit
from fuseline.ir.core import Func, Op, Value
from fuseline.ir.evaluate import call_reference
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import BufferType
from fuseline.runtime.build import KernelSource, build_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.native import Runner
from fuseline.runtime.toolchain import find_toolchain

assert lowerings.__all__, "importing the module registers the lowerings"

CASES = {
    "norm of a slice": """func @f(%p: f32[S, 96], %w: f32[32]) {
      %x = slice %p {axis = 1, start = 32, stop = 64}
      %y = rms_norm %x, %w
      return %y
    }""",
    "packed product": """func @f(%x: f32[S, 32], %q: f32[48, 32], %k: f32[16, 32]) {
      %a, %b = merged_linear %x, [%q, %k], []
      return %a, %b
    }""",
    "embedding": """func @f(%t: f32[50, 16], %i: i64[S]) {
      %y = embedding %t, %i
      return %y
    }""",
    "write to a cache": """func @f(%c: buffer<f32[1, 2, 64, 8]>, %i: i64[S], %x: f32[1, 2, S, 8]) {
      index_write %c, %i, %x {axis = 2}
      return
    }""",
    "attention at positions": """func @f(%q: f32[1, 4, S, 16], %k: f32[1, 2, L, 16],
        %v: f32[1, 2, L, 16], %p: i64[S]) {
      %y = attention %q, %k, %v, _, %p {scale = 0.25, causal = true}
      return %y
    }""",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("trials"))


def last_op(func: Func, layouts: LayoutMap) -> Emitted:
    (item,) = emit(func, layouts)
    assert item.launches, item.refusal
    return item


def trial_of(text: str, **sizes: int) -> tuple[Trial, Emitted]:
    func = parse_func(text)
    layouts = LayoutMap(func)
    layouts.askew = askew_arguments(func)
    item = last_op(func, layouts)
    trial = Trial(item.op, layouts, sizes, torch.device("cpu"))
    trial.allocate()
    return trial, item


def numbers(tensor: Tensor) -> list[int]:
    """The elements of a vector."""
    return [int(element) for element in tensor]


def results(op: Op, trial: Trial) -> list[Tensor]:
    """Clones of all that an op gives or writes."""
    values: list[Value] = [*op.results]
    values += [v for v in op.operands if isinstance(v.type, BufferType)]
    return [trial.tensor(value).clone() for value in values]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [1, 7])
def test_kernels_and_reference_do_the_same(name: str, tokens: int, cache: Cache) -> None:
    sizes = {"S": tokens, "L": 24} if "L," in CASES[name] else {"S": tokens}
    trial, item = trial_of(CASES[name], **sizes)
    toolchain = find_toolchain(cache)
    kernels = {n.kernel.symbol: n.kernel for n in item.launches}
    library = build_piece(
        cache, toolchain, [KernelSource(s, k.render(), flags=k.flags) for s, k in kernels.items()]
    )
    found = HostKernels({symbol: library.address(symbol) for symbol in kernels})
    run = trial.runnable(item.launches, found, Runner.open(cache, toolchain))
    run()
    run()
    got = results(item.op, trial)
    tensors = {value: trial.tensor(value).clone() for value in item.op.operands}
    want = list(call_reference(item.op, tensors, sizes))
    want += [t for v, t in tensors.items() if isinstance(v.type, BufferType)]
    for one, other in zip(got, want, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_runs_too(name: str) -> None:
    sizes = {"S": 3, "L": 24} if "L," in CASES[name] else {"S": 3}
    trial, item = trial_of(CASES[name], **sizes)
    trial.runnable((), HostKernels(), None)()
    assert all(t.isfinite().all() for t in results(item.op, trial))


def test_parameters_lie_packed() -> None:
    trial, item = trial_of(CASES["packed product"], S=2)
    (group,) = packed_operands(item.op)
    q, k = (trial.tensor(value) for value in group)
    assert k.data_ptr() == q.data_ptr() + q.numel() * q.element_size()


def test_a_part_of_a_larger_tensor_stays_one() -> None:
    trial, item = trial_of(CASES["norm of a slice"], S=5)
    x = trial.tensor(item.op.operands[0])
    assert (x.stride(), x.storage_offset()) == ((96, 1), 32)
    assert trial.nbytes == 4 * (5 * 96 + 32 + 5 * 32)


def test_the_same_seed_gives_the_same_operands() -> None:
    one, other = (trial_of(CASES["norm of a slice"], S=5) for _ in range(2))
    for a, b in zip(one[1].op.operands, other[1].op.operands, strict=True):
        assert torch.equal(one[0].tensor(a), other[0].tensor(b))
        assert one[0].tensor(a).std() > 0.1


def test_indices_are_where_there_is_something() -> None:
    trial, item = trial_of(CASES["embedding"], S=200)
    indices = trial.tensor(item.op.operands[1])
    assert 0 <= int(indices.min()) < int(indices.max()) < 50
    trial, item = trial_of(CASES["write to a cache"], S=64)
    assert len(set(numbers(trial.tensor(item.op.operands[1])))) == 64
    trial, item = trial_of(CASES["attention at positions"], S=3, L=24)
    assert numbers(trial.tensor(item.op.operands[3])) == [21, 22, 23]


def test_experts_are_chosen_once_for_a_token() -> None:
    func = parse_func("""func @f(%x: f32[S, 16], %i: i64[S, 4], %w: f32[S, 4], %u: f32[8, 32, 16],
        %d: f32[8, 16, 16]) {
      %y = experts %x, %i, %w, [%u], [%d] {experts = 8, dtype = f32,
        body = func @b(%g: f32[16], %p: f32[16]) { %s = silu %g  %m = mul %s, %p  return %m }}
      return %y
    }""")
    trial = Trial(func.ops[0], LayoutMap(func), {"S": 40}, torch.device("cpu"))
    trial.allocate()
    chosen = trial.tensor(func.ops[0].operands[1])
    assert all(len(set(numbers(row))) == 4 for row in chosen)
    assert set(numbers(chosen.reshape(-1))) == set(range(8))


@pytest.mark.parametrize(("active", "used"), [("", 6), (", active = 4", 4), (", active = A", 3)])
def test_rows_have_adapters_among_those_in_use(active: str, used: int) -> None:
    text = """func @f(%x: f32[S, 16], %i: i64[S], %a: f32[6, 4, 16], %b: f32[6, 8, 4]) {
      %y = multi_lora %x, %i, %a, %b {dtype = f32, delta_dtype = f32, skips = trueACTIVE}
      return %y
    }"""
    func = parse_func(text.replace("ACTIVE", active))
    trial = Trial(func.ops[0], LayoutMap(func), {"S": 80, "A": 3}, torch.device("cpu"))
    trial.allocate()
    assert set(numbers(trial.tensor(func.ops[0].operands[1]))) == set(range(used))
