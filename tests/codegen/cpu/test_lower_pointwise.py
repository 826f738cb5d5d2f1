"""Ops that the element-wise kernel does, from a func in text form to numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fuseline.codegen import lowerings
from fuseline.codegen.lower import Emitted, Scratch, emit
from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import Argument, bind, evaluate
from fuseline.ir.layout import LayoutMap, extent_of
from fuseline.ir.text import parse_func
from fuseline.ir.types import BufferType, substitute
from tests.codegen.cpu.harness import build
from tests.codegen.samples import assert_close

assert lowerings.__all__, "importing them registers them"


class Machine:
    """Runs emitted launches on memory of its own, one block for each root value."""

    def __init__(self, func: Func, arguments: Sequence[Argument]) -> None:
        self.binding = bind(func, arguments)
        self.layouts = LayoutMap(func)
        self.memory = {
            value: given.clone().contiguous()
            for value, given in zip(func.args, arguments, strict=True)
            if isinstance(given, Tensor)
        }
        self.steps = emit(func, self.layouts)

    def buffer(self, value: Value) -> Tensor:
        """Memory from the first element of a value on."""
        place = self.layouts[value]
        if place.root not in self.memory:
            layout, root = self.layouts.layout(place.root), place.root
            size = substitute(extent_of(root.shape, layout), self.binding)
            self.memory[root] = torch.zeros(max(size, 1), dtype=root.dtype.torch)
        flat = self.memory[place.root].reshape(-1)
        return flat[substitute(place.layout.offset, self.binding) :]

    def tensor(self, value: Value) -> Tensor:
        shape, strides = (
            [substitute(d, self.binding) for d in dims]
            for dims in (value.shape, self.layouts.layout(value).strides)
        )
        return self.buffer(value).as_strided(shape, strides)

    def run(self, nth: int) -> None:
        for step in self.steps:
            assert not step.refusal, step.refusal
            self.launch(step, nth)

    def launch(self, step: Emitted, nth: int) -> None:
        for launch in step.launches:
            buffers = [
                self.buffer(b) if isinstance(b, Value) else None
                for b in launch.buffers
                if not isinstance(b, Scratch)
            ]
            dims = [substitute(d, self.binding) for d in launch.dims]
            build(launch.kernel)(buffers, dims, nth=nth)


def check(text: str, arguments: Sequence[Tensor], *, atol: float = 0.0) -> list[Emitted]:
    """The launches of a func give what its reference gives, buffers included."""
    func = parse_func(text)
    own = [a.clone() for a in arguments]
    want = evaluate(parse_func(text), own)
    for nth in (1, 2, 3):
        machine = Machine(func, arguments)
        machine.run(nth)
        for value, ref in zip(func.returns, want, strict=True):
            assert_close(machine.tensor(value), ref, exact=atol == 0, ulps=4, atol=atol)
        for arg, ref in zip(func.args, own, strict=True):
            if isinstance(arg.type, BufferType):
                assert torch.equal(machine.memory[arg], ref)
    return Machine(func, arguments).steps


def test_concat_promotes_and_reads_strided_operands() -> None:
    text = """func @f(%x: bf16[B, 3, 5], %z: f32[B, 7, 5]) {
      %p = permute %x {dims = (0, 2, 1)}
      %q = permute %z {dims = (0, 2, 1)}
      %y = concat [%p, %q, %p] {axis = 2}
      return %y
    }"""
    check(text, [torch.randn(2, 3, 5).bfloat16(), torch.randn(2, 7, 5)])


def test_concat_along_a_symbolic_axis() -> None:
    text = """func @f(%x: i64[S, 3], %z: i64[T, 3]) {
      %y = concat [%x, %z] {axis = 0}
      return %y
    }"""
    check(text, [torch.arange(15).reshape(5, 3), torch.arange(6).reshape(2, 3)])
    check(text, [torch.arange(15).reshape(5, 3), torch.zeros(0, 3, dtype=torch.int64)])


def test_reshape_that_is_no_view() -> None:
    text = """func @f(%x: f32[B, 4, S, 6]) {
      %p = permute %x {dims = (0, 2, 1, 3)}
      %y = reshape %p {shape = (B, S, 24)}
      return %y
    }"""
    steps = check(text, [torch.randn(2, 4, 5, 6)])
    assert [s.op.name for s in steps] == ["reshape"]


def test_writes() -> None:
    text = """func @f(%k: buffer<f32[3, 8, 4]>, %x: f32[3, 8, 4], %s: f32[3, 2, 4]) {
      write %k, %x
      slice_write %k, %s {axis = 1, start = 3, stop = 5}
      %y = read %k
      return %y
    }"""
    check(text, [torch.zeros(3, 8, 4), torch.randn(3, 8, 4), torch.randn(3, 2, 4)])


def test_state_computed_where_it_is_kept() -> None:
    """Each buffer is read and written by the same kernel, which no other one waits for."""
    text = """func @f(%a: buffer<i64[1]>, %b: buffer<i64[1]>, %n: i64[1]) {
      %x = read %a
      %y = read %b
      pointwise_write [%a, %b], [%x, %n, %y]
        {body = func @region(%x: i64[1], %n: i64[1], %y: i64[1]) {
        %p = add %x, %n
        %q = sub %y, %n
        return %p, %q
      }}
      %u = read %a
      %v = read %b
      return %u, %v
    }"""
    check(text, [torch.tensor([5]), torch.tensor([7]), torch.tensor([2])])


def test_slice_scatter_with_a_step() -> None:
    text = """func @f(%x: bf16[3, 9], %s: bf16[3, 4]) {
      %y = slice_scatter %x, %s {axis = 1, start = 1, stop = 9, step = 2}
      return %y
    }"""
    check(text, [torch.randn(3, 9).bfloat16(), torch.randn(3, 4).bfloat16()])


@pytest.mark.parametrize("axis", [0, 1])
def test_pad(axis: int) -> None:
    text = f"""func @f(%x: f32[S, 5]) {{
      %y = pad %x {{axis = {axis}, before = 2, after = 3, value = -1.5}}
      %z = pad %x {{axis = {axis}, after = 1}}
      return %y, %z
    }}"""
    check(text, [torch.randn(3, 5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_along_any_axis(axis: int, dtype: torch.dtype) -> None:
    kind = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float64: "f64"}[dtype]
    text = f"""func @f(%x: {kind}[B, 7, 37]) {{
      %y = softmax %x {{axis = {axis}}}
      return %y
    }}"""
    check(text, [torch.randn(3, 7, 37, dtype=dtype) * 9], atol=1e-7)


@pytest.mark.parametrize("attributes", [
    '{eps = 1e-05, offset = 1.0, cast = "last"}', '{offset = 1.0}', "{eps = 0.1}",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("weight", ["%w", "_"])
def test_rms_norm_and_add(kind: str, attributes: str, weight: str) -> None:
    text = f"""func @f(%x: {kind}[B, S, 37], %r: {kind}[B, S, 37], %w: {kind}[37]) {{
      %y = rms_norm_add %x, %r, {weight} {attributes}
      return %y
    }}"""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    check(text, [torch.randn(2, 3, 37).to(dtype), torch.randn(2, 3, 37).to(dtype),
                 torch.randn(37).to(dtype)], atol=1e-6 if kind == "f32" else 2e-2)  # fmt: skip


@pytest.mark.parametrize("attributes", [
    '{eps = 1e-05, offset = 1.0, cast = "last", next_cast = "last"}', "{next_offset = 1.0}",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("weights", ["%w, %u", "_, %u", "%w"])
def test_norms_around_an_add(kind: str, attributes: str, weights: str) -> None:
    text = f"""func @f(%x: {kind}[B, S, 37], %r: {kind}[B, S, 37],
        %w: {kind}[37], %u: {kind}[37]) {{
      %s, %y = sandwich_norm %x, %r, {weights} {attributes}
      return %s, %y
    }}"""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    tensors = [torch.randn(2, 3, 37), torch.randn(2, 3, 37), torch.randn(37), torch.randn(37)]
    check(text, [t.to(dtype) for t in tensors], atol=3e-6 if kind == "f32" else 4e-2)


def test_one_operand_read_twice() -> None:
    check("func @f(%x: f32[S]) {\n %y = mul %x, %x\n return %y\n }", [torch.randn(37)])


def test_region_over_a_slice_of_a_merged_result() -> None:
    text = """func @f(%p: f32[B, 24], %w: f32[8]) {
      %a = slice %p {axis = 1, start = 8, stop = 16}
      %y, %z = pointwise [%a, %w] {body = func @g(%a: f32[B, 8], %w: f32[8]) {
        %t = mul %a, %w
        %u = tanh %t
        return %t, %u
      }}
      return %y, %z
    }"""
    check(text, [torch.randn(5, 24), torch.randn(8)], atol=1e-6)


def test_what_no_kernel_does_says_why() -> None:
    func = parse_func("func @f(%x: i64[5], %z: i64[5]) {\n %y = remainder %x, %z\n return %y\n }")
    (step,) = emit(func, LayoutMap(func))
    assert step.refusal == "remainder by an integer that may be 0, where torch raises"
