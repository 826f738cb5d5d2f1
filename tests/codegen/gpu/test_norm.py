"""Row norms in Triton: numbers through the interpreter."""

from __future__ import annotations

import itertools

import pytest

from fuseline.codegen.gpu.lower_rows import FEW_ROWS
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.harness import binaries, check
from tests.codegen.oracle import DTYPES, seeded


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_slices(dtype: str) -> None:
    kind = DTYPES[dtype]
    text = f"""func @f(%x: {dtype}[B, S, 60], %w: {dtype}[20], %b: {dtype}[2, 20],
                       %r: {dtype}[B, S, 20]) {{
      %a = slice %x {{axis = 2, start = 0, stop = 20}}
      %y = rms_norm %a, %w {{eps = 1e-05, offset = 1.0, cast = "last"}}
      %h = slice %x {{axis = 2, start = 20, stop = 60}}
      %p = reshape %h {{shape = (B, S, 2, 20)}}
      %z = layer_norm %p, %b {{eps = 1e-05, cast = "last"}}
      %s, %n = add_rms_norm %a, %r, %w
      return %y, %z, %s, %n
    }}"""
    arguments = [
        seeded(2, 5, 60, dtype=kind),
        seeded(20, dtype=kind, seed=1),
        seeded(2, 20, dtype=kind, seed=2),
        seeded(2, 5, 20, dtype=kind, seed=3),
    ]
    check(text, arguments, ops=["rms_norm", "layer_norm", "add_rms_norm"])


@pytest.mark.parametrize(("dtype", "weight"), list(itertools.product(DTYPES, DTYPES)))
def test_a_weight_of_another_dtype_promotes(dtype: str, weight: str) -> None:
    text = f"""func @f(%x: {dtype}[S, 80], %w: {weight}[80], %b: {weight}[80]) {{
      %y = rms_norm %x, %w {{offset = 1.0}}
      %z = layer_norm %x, %w, %b {{cast = "before_weight"}}
      return %y, %z
    }}"""
    kinds = DTYPES[dtype], DTYPES[weight]
    x = seeded(3, 80, dtype=kinds[0], scale=3.0)
    check(text, [x, *(seeded(80, dtype=kinds[1], seed=i) for i in (1, 2))])


@pytest.mark.parametrize("width", [1, 7, 112, 4096])
def test_widths(width: int) -> None:
    text = f"""func @f(%x: f32[S, {width}], %w: f32[{width}]) {{
      %y = rms_norm %x, %w
      %z = layer_norm %x
      return %y, %z
    }}"""
    check(
        text, [seeded(2, width, dtype=DTYPES["f32"], scale=2.0), seeded(width, dtype=DTYPES["f32"])]
    )


def test_no_rows() -> None:
    text = "func @f(%x: f32[S, 8]) { %y = rms_norm %x  return %y }"
    check(text, [seeded(0, 8, dtype=DTYPES["f32"])])


def test_many_narrow_rows_share_a_block() -> None:
    text = "func @f(%x: f32[S, 8]) { %y = rms_norm %x  return %y }"
    check(text, [seeded(FEW_ROWS + 1, 8, dtype=DTYPES["f32"])])


@pytest.mark.parametrize("width", [4096, 7168])
def test_binaries_of_released_sizes_move_16_bytes_at_once(width: int, binary_cache: Cache) -> None:
    text = f"""func @f(%x: bf16[S, {width}], %r: bf16[S, {width}], %w: bf16[{width}]) {{
      %s, %y = add_rms_norm %x, %r, %w
      return %s, %y
    }}"""
    for target, made in binaries(text, binary_cache):
        assert made.binary.resources["narrowest_load"] == 128, target.name
        assert made.binary.resources["narrowest_store"] == 128, target.name


def test_binaries_of_head_norms(binary_cache: Cache) -> None:
    text = """func @f(%x: bf16[S, 32, 128], %w: bf16[128]) {
      %y = rms_norm %x, %w
      return %y
    }"""
    assert binaries(text, binary_cache)
