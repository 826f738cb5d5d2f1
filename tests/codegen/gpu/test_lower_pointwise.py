"""Ops that the element-wise kernel does in Triton: a func in text form to numbers and binaries."""

from __future__ import annotations

import pytest
import torch

from fuseline.codegen.gpu import tiles
from fuseline.codegen.gpu.pointwise import PointwiseKernel
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.harness import binaries
from tests.codegen.gpu.harness import check as check_numbers
from tests.codegen.gpu.region_harness import check_func as check
from tests.codegen.oracle import DTYPES, seeded


def kernels(text: str) -> list[PointwiseKernel]:
    func = parse_func(text)
    steps = emit(func, LayoutMap(func), "cuda")
    found = [launch.kernel for step in steps for launch in step.launches]
    return [kernel for kernel in found if isinstance(kernel, PointwiseKernel)]


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
    check(text, [torch.randn(2, 4, 5, 6)], ops=["reshape"])


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
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert step.refusal == "remainder by an integer that may be 0, where torch raises"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_keeps_to_the_numbers_rule(dtype: str) -> None:
    for gate in ("silu", "sigmoid", "tanh", 'gelu {approximate = "tanh"}', "gelu", "softplus"):
        name, *rest = gate.split(" ", 1)
        text = f"""func @f(%p: {dtype}[S, 600]) {{
          %g = slice %p {{axis = 1, start = 0, stop = 300}}
          %u = slice %p {{axis = 1, start = 300, stop = 600}}
          %y = pointwise [%g, %u] {{body = func @b(%g: {dtype}[S, 300], %u: {dtype}[S, 300]) {{
            %s = {name} %g {" ".join(rest)}
            %y = mul %s, %u
            return %y
          }}}}
          return %y
        }}"""
        check_numbers(text, [seeded(3, 600, dtype=DTYPES[dtype], scale=4.0)], ops=["pointwise"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(2, 4096), (3, 40000), (tiles.FEW_ROWS + 1, 8)])
def test_softmax_of_short_and_long_rows(dtype: str, rows: int, width: int) -> None:
    """In registers, in loops, and several rows to a block."""
    text = f"""func @f(%x: {dtype}[B, {width}]) {{
      %y = softmax %x {{axis = 1}}
      return %y
    }}"""
    check_numbers(text, [seeded(rows, width, dtype=DTYPES[dtype], scale=3.0)])


@pytest.mark.parametrize("keys", [0, 13, 1024, 1500])
def test_softmax_over_an_unknown_number_of_keys(keys: int) -> None:
    """One tile where they fit, a loop beyond."""
    text = """func @f(%x: f32[H, K]) {
      %y = softmax %x {axis = 1}
      return %y
    }"""
    few, many = kernels(text)
    assert (few.tile.looped, many.tile.looped) == (False, True)
    check_numbers(text, [seeded(2, keys, dtype=torch.float32)])


def test_a_looped_norm_computes_again_what_it_needs() -> None:
    text = """func @f(%x: bf16[S, 20000], %r: bf16[S, 20000], %w: bf16[20000]) {
      %s, %y = sandwich_norm %x, %r, %w, %w {offset = 1.0}
      return %s, %y
    }"""
    (kernel,) = kernels(text)
    assert kernel.tile.looped
    x, r = (seeded(2, 20000, dtype=torch.bfloat16, seed=i) for i in (0, 1))
    check_numbers(text, [x, r, seeded(20000, dtype=torch.bfloat16, seed=2, scale=0.1)])


@pytest.mark.parametrize("dtype", ["f32", "bf16", "bool"])
@pytest.mark.parametrize("shape", [(3, 70, 40), (1, 5, 129), (2, 0, 4)])
def test_a_transposed_copy_goes_by_squares(dtype: str, shape: tuple[int, int, int]) -> None:
    text = f"""func @f(%x: {dtype}[B, S, T]) {{
      %p = permute %x {{dims = (0, 2, 1)}}
      %y = copy %p
      return %y
    }}"""
    (kernel,) = kernels(text)
    assert kernel.tile.rows == "tiled"
    kinds = DTYPES | {"bool": torch.bool}
    check(text, [seeded(*shape, dtype=torch.float32).relu().to(kinds[dtype])])


def test_elements_of_rows_that_follow_three_axes() -> None:
    """Of known and unknown extents, few and many elements in a row."""
    for width, inner in ((96, 96), ("W", 5), ("W", 300)):
        text = f"""func @f(%x: f16[B, 5, S, {width}], %m: f32[B, 1, S, 1], %w: f16[{width}]) {{
          %p = permute %x {{dims = (0, 2, 1, 3)}}
          %y = pointwise [%p, %m, %w] {{body = func @b(%p: f16[B, S, 5, {width}],
              %m: f32[B, 1, S, 1], %w: f16[{width}]) {{
            %t = permute %m {{dims = (0, 2, 1, 3)}}
            %a = mul %p, %w
            %y = add %a, %t
            return %y
          }}}}
          return %y
        }}"""
        x = seeded(2, 5, 3, inner, dtype=torch.float16)
        m, w = seeded(2, 1, 3, 1, dtype=torch.float32), seeded(inner, dtype=torch.float16)
        check(text, [x, m, w], atol=1e-6)


def test_binaries_of_a_gate_move_16_bytes_at_once(binary_cache: Cache) -> None:
    """silu(gate) * up over a merged projection of 14336 + 14336 columns, for few and many rows."""
    text = """func @f(%p: bf16[S, 28672]) {
      %g = slice %p {axis = 1, start = 0, stop = 14336}
      %u = slice %p {axis = 1, start = 14336, stop = 28672}
      %y = pointwise [%g, %u] {body = func @b(%g: bf16[S, 14336], %u: bf16[S, 14336]) {
        %s = silu %g
        %y = mul %s, %u
        return %y
      }}
      return %y
    }"""
    made = binaries(text, binary_cache)
    assert len(made) == 8
    for target, each in made:
        for access in ("narrowest_load", "narrowest_store"):
            assert each.binary.resources[access] == 128, target.name
        assert each.resident >= 0.4, target.name


@pytest.mark.slow
def test_binaries_of_norms_softmax_and_copies(binary_cache: Cache) -> None:
    text = """func @f(%x: bf16[S, 5376], %r: bf16[S, 5376], %w: bf16[5376],
                    %q: bf16[B, S, 8, 128]) {
      %s, %n = sandwich_norm %x, %r, %w, %w
      %p = permute %q {dims = (0, 2, 1, 3)}
      %y = copy %p
      %c = concat [%x, %r] {axis = 0}
      return %s, %n, %y, %c
    }"""
    for target, each in binaries(text, binary_cache, GPU_TARGETS[1:4:2]):
        for access in ("narrowest_load", "narrowest_store"):
            assert each.binary.resources[access] == 128, (target.name, each.binary.symbol)


@pytest.mark.slow
def test_binaries_of_rows_of_any_length(binary_cache: Cache) -> None:
    """Softmax over an unknown number of keys, and over a vocabulary."""
    text = """func @f(%x: bf16[S, 32, K], %z: f32[S, 151936]) {
      %y = softmax %x {axis = 2}
      %w = softmax %z {axis = 1}
      return %y, %w
    }"""
    assert len(binaries(text, binary_cache)) == 3 * len(GPU_TARGETS)


def test_binaries_of_sums_over_experts(binary_cache: Cache) -> None:
    """The outputs of 8 experts of a token, each by its weight."""
    text = """func @f(%x: bf16[T, 8, 4096], %w: f32[T, 8]) {
      %y = pointwise [%x, %w] {body = func @b(%x: bf16[T, 8, 4096], %w: f32[T, 8]) {
        %u = reshape %w {shape = (T, 8, 1)}
        %p = mul %x, %u
        %s = sum %p {axes = (1,)}
        %y = cast %s {dtype = bf16}
        return %y
      }}
      return %y
    }"""
    for target, each in binaries(text, binary_cache):
        assert each.binary.resources["widest_load"] == 128, target.name
        assert each.binary.resources["narrowest_store"] == 128, target.name
