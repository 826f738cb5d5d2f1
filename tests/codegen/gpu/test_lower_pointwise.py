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
from tests.codegen.cases import Make, check_cases
from tests.codegen.func_cases import FUNCS
from tests.codegen.gpu.harness import binaries
from tests.codegen.gpu.harness import check as check_numbers
from tests.codegen.gpu.region_harness import check_func
from tests.codegen.oracle import DTYPES, seeded


@pytest.mark.parametrize("case", FUNCS)
def test_cases(case: Make) -> None:
    check_cases(case, check_func)


def kernels(text: str) -> list[PointwiseKernel]:
    func = parse_func(text)
    steps = emit(func, LayoutMap(func), "cuda")
    found = [launch.kernel for step in steps for launch in step.launches]
    return [kernel for kernel in found if isinstance(kernel, PointwiseKernel)]


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
    check_func(text, [seeded(*shape, dtype=torch.float32).relu().to(kinds[dtype])])


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
        check_func(text, [x, m, w], atol=1e-6)


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
