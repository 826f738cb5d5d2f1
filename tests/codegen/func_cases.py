"""Ops that an element-wise kernel does, as funcs in text form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.codegen.cases import Case, Cases

FUNCS = Cases()


@FUNCS
def concat_promotes_and_reads_strided_operands() -> Iterator[Case]:
    text = """func @f(%x: bf16[B, 3, 5], %z: f32[B, 7, 5]) {
      %p = permute %x {dims = (0, 2, 1)}
      %q = permute %z {dims = (0, 2, 1)}
      %y = concat [%p, %q, %p] {axis = 2}
      return %y
    }"""
    yield Case(text, [torch.randn(2, 3, 5).bfloat16(), torch.randn(2, 7, 5)])


@FUNCS
def concat_along_a_symbolic_axis() -> Iterator[Case]:
    text = """func @f(%x: i64[S, 3], %z: i64[T, 3]) {
      %y = concat [%x, %z] {axis = 0}
      return %y
    }"""
    yield Case(text, [torch.arange(15).reshape(5, 3), torch.arange(6).reshape(2, 3)])
    yield Case(text, [torch.arange(15).reshape(5, 3), torch.zeros(0, 3, dtype=torch.int64)])


@FUNCS
def reshape_that_is_no_view() -> Iterator[Case]:
    text = """func @f(%x: f32[B, 4, S, 6]) {
      %p = permute %x {dims = (0, 2, 1, 3)}
      %y = reshape %p {shape = (B, S, 24)}
      return %y
    }"""
    yield Case(text, [torch.randn(2, 4, 5, 6)], ops=["reshape"])


@FUNCS
def writes() -> Iterator[Case]:
    text = """func @f(%k: buffer<f32[3, 8, 4]>, %x: f32[3, 8, 4], %s: f32[3, 2, 4]) {
      write %k, %x
      slice_write %k, %s {axis = 1, start = 3, stop = 5}
      %y = read %k
      return %y
    }"""
    yield Case(text, [torch.zeros(3, 8, 4), torch.randn(3, 8, 4), torch.randn(3, 2, 4)])


@FUNCS
def state_computed_where_it_is_kept() -> Iterator[Case]:
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
    yield Case(text, [torch.tensor([5]), torch.tensor([7]), torch.tensor([2])])


@FUNCS
def slice_scatter_with_a_step() -> Iterator[Case]:
    text = """func @f(%x: bf16[3, 9], %s: bf16[3, 4]) {
      %y = slice_scatter %x, %s {axis = 1, start = 1, stop = 9, step = 2}
      return %y
    }"""
    yield Case(text, [torch.randn(3, 9).bfloat16(), torch.randn(3, 4).bfloat16()])


@FUNCS
@pytest.mark.parametrize("axis", [0, 1])
def pad(axis: int) -> Iterator[Case]:
    text = f"""func @f(%x: f32[S, 5]) {{
      %y = pad %x {{axis = {axis}, before = 2, after = 3, value = -1.5}}
      %z = pad %x {{axis = {axis}, after = 1}}
      return %y, %z
    }}"""
    yield Case(text, [torch.randn(3, 5)])


@FUNCS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axis", [1, 2])
def softmax_along_any_axis(axis: int, dtype: torch.dtype) -> Iterator[Case]:
    kind = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float64: "f64"}[dtype]
    text = f"""func @f(%x: {kind}[B, 7, 37]) {{
      %y = softmax %x {{axis = {axis}}}
      return %y
    }}"""
    yield Case(text, [torch.randn(3, 7, 37, dtype=dtype) * 9], atol=1e-7)


@FUNCS
@pytest.mark.parametrize("attributes", [
    '{eps = 1e-05, offset = 1.0, cast = "last"}', '{offset = 1.0}', "{eps = 0.1}",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("weight", ["%w", "_"])
def rms_norm_and_add(kind: str, attributes: str, weight: str) -> Iterator[Case]:
    text = f"""func @f(%x: {kind}[B, S, 37], %r: {kind}[B, S, 37], %w: {kind}[37]) {{
      %y = rms_norm_add %x, %r, {weight} {attributes}
      return %y
    }}"""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    yield Case(text, [torch.randn(2, 3, 37).to(dtype), torch.randn(2, 3, 37).to(dtype),
                 torch.randn(37).to(dtype)], atol=1e-6 if kind == "f32" else 2e-2)  # fmt: skip


@FUNCS
@pytest.mark.parametrize("attributes", [
    '{eps = 1e-05, offset = 1.0, cast = "last", next_cast = "last"}', "{next_offset = 1.0}",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("weights", ["%w, %u", "_, %u", "%w"])
def norms_around_an_add(kind: str, attributes: str, weights: str) -> Iterator[Case]:
    text = f"""func @f(%x: {kind}[B, S, 37], %r: {kind}[B, S, 37],
        %w: {kind}[37], %u: {kind}[37]) {{
      %s, %y = sandwich_norm %x, %r, {weights} {attributes}
      return %s, %y
    }}"""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    tensors = [torch.randn(2, 3, 37), torch.randn(2, 3, 37), torch.randn(37), torch.randn(37)]
    yield Case(text, [t.to(dtype) for t in tensors], atol=3e-6 if kind == "f32" else 4e-2)


@FUNCS
def one_operand_read_twice() -> Iterator[Case]:
    yield Case("func @f(%x: f32[S]) {\n %y = mul %x, %x\n return %y\n }", [torch.randn(37)])


@FUNCS
def region_over_a_slice_of_a_merged_result() -> Iterator[Case]:
    text = """func @f(%p: f32[B, 24], %w: f32[8]) {
      %a = slice %p {axis = 1, start = 8, stop = 16}
      %y, %z = pointwise [%a, %w] {body = func @g(%a: f32[B, 8], %w: f32[8]) {
        %t = mul %a, %w
        %u = tanh %t
        return %t, %u
      }}
      return %y, %z
    }"""
    yield Case(text, [torch.randn(5, 24), torch.randn(8)], atol=1e-6)
