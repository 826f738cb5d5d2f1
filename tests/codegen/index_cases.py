"""Gathers and writes by index, as funcs in text form: copies are exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.codegen.cases import Case, Cases
from tests.codegen.oracle import seeded

INDEX = Cases()
ROWS = """func @f(%x: f32[R, 6, 4], %i: i64[B, S]) {
  %y = index %x, [%i] {axes = (0,)}
  return %y
}"""
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def elements(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return seeded(*shape, dtype=torch.float32, scale=50.0).to(dtype)


def integers(
    *shape: int, below: int, wraps: bool = True, dtype: torch.dtype = torch.int64
) -> Tensor:
    low = -below if wraps else 0
    return torch.randint(low, below, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@INDEX
@pytest.mark.parametrize("index", ["i64", "i32"])
@pytest.mark.parametrize("dtype", DTYPES)
def tables_by_position(dtype: str, index: str) -> Iterator[Case]:
    text = f"""func @f(%x: {dtype}[R, 6], %i: {index}[B, S], %j: {index}[S]) {{
      %a = index %x, [%i] {{axes = (0,)}}
      %t = permute %x {{dims = (1, 0)}}
      %b = index %t, [%i] {{axes = (1,)}}
      %c = index_select %x, %j {{axis = 0}}
      %d = index_select %t, %j {{axis = 1}}
      return %a, %b, %c, %d
    }}"""
    x, kind = elements(11, 6, dtype=DTYPES[dtype]), {"i64": torch.int64, "i32": torch.int32}[index]
    for rows in (0, 1, 7):
        i = integers(2, rows, below=11, dtype=kind)
        yield Case(text, [x, i, integers(rows, below=11, wraps=False, dtype=kind)])


@INDEX
def several_indices_broadcast() -> Iterator[Case]:
    text = """func @f(%x: f32[B, 5, 7, 3], %b: i64[B, 1, 1], %i: i64[4, 1], %j: i64[6], %k: i64[]) {
      %adjacent = index %x, [%i, %j] {axes = (1, 2)}
      %apart = index %x, [%b, %j] {axes = (0, 2)}
      %last = index %x, [%b, %i, %j] {axes = (0, 1, 3)}
      %number = index %x, [%k] {axes = (2,)}
      return %adjacent, %apart, %last, %number
    }"""
    arguments = [
        elements(2, 5, 7, 3),
        integers(2, 1, 1, below=2),
        integers(4, 1, below=5),
        integers(6, below=3),
        integers(below=7),
    ]
    yield Case(text, arguments)


@INDEX
def strided_operands_need_no_copy() -> Iterator[Case]:
    text = """func @f(%x: f32[B, 9, H, 8], %i: i64[B, T]) {
      %p = permute %x {dims = (0, 2, 1, 3)}
      %half = slice %p {axis = 3, start = 1, stop = 7}
      %first = slice %i {axis = 1, stop = 2}
      %e = reshape %first {shape = (B, 1, 2, 1)}
      %wide = expand %e {shape = (B, H, 2, 6)}
      %y = gather %half, %wide {axis = 2}
      %z = index %half, [%first] {axes = (2,)}
      return %y, %z
    }"""
    yield Case(text, [elements(2, 9, 3, 8), integers(2, 4, below=9, wraps=False)])


@INDEX
def a_padding_mask_by_positions() -> Iterator[Case]:
    """As transformers spells it for a cache that grows: two indices that are all dims but one."""
    text = """func @f(%mask: bool[B, K]) {
      %b = iota {length = B, start = 0, step = 1, dtype = i64}
      %batch = reshape %b {shape = (B, 1, 1, 1)}
      %i = iota {length = K, start = 0, step = 1, dtype = i64}
      %keys = reshape %i {shape = (1, 1, 1, K)}
      %y = index %mask, [%batch, %keys] {axes = (0, 1)}
      return %y
    }"""
    yield Case(text, [elements(3, 13) > 0])


@INDEX
@pytest.mark.parametrize("dtype", ["f32", "bf16", "i64"])
def index_copy(dtype: str) -> Iterator[Case]:
    """Into a tensor that stays as it is, into a part of one, and into one number everywhere."""
    text = f"""func @f(%x: {dtype}[2, 3, 9, 4], %at: i64[S], %s: {dtype}[2, S, 3, 4]) {{
      %t = permute %s {{dims = (0, 2, 1, 3)}}
      %a = index_copy %x, %at, %t {{axis = 2}}
      %part = slice %x {{axis = 2, start = 1, stop = 7}}
      %b = index_copy %part, %at, %t {{axis = 2}}
      %zeros = full {{value = 0, shape = (2, 3, 9, 4), dtype = {dtype}}}
      %c = index_copy %zeros, %at, %t {{axis = 2}}
      return %a, %b, %c, %x
    }}"""
    kind = DTYPES[dtype]
    for places in ([], [5], [5, 0, 3], [1, 4, 1, 4, 1]):
        at = torch.tensor(places, dtype=torch.int64)
        s = elements(2, len(places), 3, 4, dtype=kind)
        yield Case(text, [elements(2, 3, 9, 4, dtype=kind), at, s])


@INDEX
def writes_into_a_part_of_a_buffer() -> Iterator[Case]:
    text = """func @f(%k: buffer<f32[L, 4, 3, 9, 5]>, %at: i64[S], %x: f32[2, S, 3, 5])
        where L in 2.. {
      %t = permute %x {dims = (0, 2, 1, 3)}
      %r = reshape %t {shape = (1, 2, 3, S, 5)}
      index_write %k, %at, %r {axis = 3, origin = (<L - 1>, 1, 0, 0, 0)}
      slice_write %k, %r {axis = 3, start = 2, stop = <S + 2>, origin = (0, 2, 0, 0, 0)}
      %y = read %k
      return %y
    }"""
    for places in ([7], [8, 0, 3], [1, 4, 1, 4, 1]):
        x = elements(2, len(places), 3, 5)
        yield Case(text, [elements(3, 4, 3, 9, 5), torch.tensor(places), x])


@INDEX
def rows_are_copied_whole() -> Iterator[Case]:
    yield Case(ROWS, [elements(5, 6, 4), integers(3, 7, below=5)])


@INDEX
@pytest.mark.parametrize("count", [1, 3, 9, 20])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "bool"])
def a_window_moves_on(dtype: str, count: int) -> Iterator[Case]:
    """From a transposed source, into rows that lie side by side; more slices than in flight."""
    text = f"""func @f(%k: {dtype}[2, S, 3, 6], %c: buffer<{dtype}[2, 3, 40, 6]>)
        where S in 1..40 {{
      %t = permute %k {{dims = (0, 2, 1, 3)}}
      shift_write %c, %t {{axis = 2}}
      %r = read %c
      return %r
    }}"""
    kind = DTYPES[dtype]
    yield Case(text, [elements(2, count, 3, 6, dtype=kind), elements(2, 3, 40, 6, dtype=kind)])
