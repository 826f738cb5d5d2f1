"""Gathers, writes by index and argmax in Triton, from a func in text form: copies are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fuseline.codegen.gpu.gather import GatherKernel
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen import oracle
from tests.codegen.gpu.harness import binaries, interpreted
from tests.codegen.gpu.region_harness import check_func as check
from tests.codegen.machine import Machine
from tests.codegen.oracle import seeded

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def kernels(text: str) -> list[GatherKernel]:
    func = parse_func(text)
    steps = [
        launch.kernel for step in emit(func, LayoutMap(func), "cuda") for launch in step.launches
    ]
    return [kernel for kernel in steps if isinstance(kernel, GatherKernel)]


def elements(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return seeded(*shape, dtype=torch.float32, scale=50.0).to(dtype)


def integers(
    *shape: int, below: int, wraps: bool = True, dtype: torch.dtype = torch.int64
) -> Tensor:
    low = -below if wraps else 0
    return torch.randint(low, below, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("index", ["i64", "i32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_by_position(dtype: str, index: str) -> None:
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
        check(text, [x, i, integers(rows, below=11, wraps=False, dtype=kind)])


def test_rows_are_copied_whole() -> None:
    text = """func @f(%x: f32[R, 6, 4], %i: i64[B, S]) {
      %y = index %x, [%i] {axes = (0,)}
      return %y
    }"""
    small, large = kernels(text)
    assert len(small.indices[0].place.split("+")) == 1, "the dims of a dense index are one"
    assert large.tile.block == 32, "those behind are the row"
    check(text, [elements(5, 6, 4), integers(3, 7, below=5)])


def test_several_indices_broadcast() -> None:
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
    check(text, arguments)


def test_strided_operands_need_no_copy() -> None:
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
    check(text, [elements(2, 9, 3, 8), integers(2, 4, below=9, wraps=False)])


def test_a_padding_mask_by_positions() -> None:
    """As transformers spells it for a cache that grows: two indices that are all dims but one."""
    text = """func @f(%mask: bool[B, K]) {
      %b = iota {length = B, start = 0, step = 1, dtype = i64}
      %batch = reshape %b {shape = (B, 1, 1, 1)}
      %i = iota {length = K, start = 0, step = 1, dtype = i64}
      %keys = reshape %i {shape = (1, 1, 1, K)}
      %y = index %mask, [%batch, %keys] {axes = (0, 1)}
      return %y
    }"""
    check(text, [elements(3, 13) > 0])


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("index %x, [%i] {axes = (0,)}", (-12, 11, 2**40)),
        ("index %x, [%i] {axes = (1,)}", (-7, 6)),
        ("index_select %x, %i {axis = 0}", (-1, 11)),
        ("embedding %x, %i", (-1, 11)),
    ],
)
def test_an_index_outside_gives_zeros(line: str, bad: tuple[int, ...]) -> None:
    text = f"func @f(%x: f32[11, 6], %i: i64[S]) {{\n%y = {line}\nreturn %y\n}}"
    for index in bad:
        func, at = parse_func(text), torch.tensor([3, index, 0])
        x = elements(11, 6)
        made = Machine(func, [x, at], interpreted, backend="cuda").tensor(func.returns[0])
        axis = 1 if "axes = (1,)" in line else 0
        want = x.index_select(axis, torch.tensor([3, 0, 0]))
        want.select(axis, 1).zero_()
        assert torch.equal(made, want)


def test_indices_of_other_types_are_refused() -> None:
    func = parse_func("""func @f(%x: f32[11, 6], %i: i16[S]) {
      %y = index %x, [%i] {axes = (0,)}
      return %y
    }""")
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert "index i16[S]; the kernel takes i64 and i32" in step.refusal


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i64"])
def test_index_copy(dtype: str) -> None:
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
        check(text, [elements(2, 3, 9, 4, dtype=kind), at, s])


def test_writes_into_a_part_of_a_buffer() -> None:
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
        check(text, [elements(3, 4, 3, 9, 5), torch.tensor(places), x])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("index_write %k, %short, %x {axis = 1}", "index i16[2]; the kernel takes i64 and i32"),
        ("index_write %k, %at, %h {axis = 1}", "bf16[4, 2] written into buffer<f32[4, 9]>"),
    ],
)
def test_no_index_write(line: str, reason: str) -> None:
    func = parse_func(f"""func @f(%k: buffer<f32[4, 9]>, %at: i64[2], %short: i16[2],
                                    %x: f32[4, 2], %h: bf16[4, 2]) {{
      {line}
      return
    }}""")
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert step.refusal == reason


def test_an_index_outside_is_not_written() -> None:
    text = """func @f(%k: buffer<f32[4, 9, 5]>, %at: i64[S], %x: f32[4, S, 5]) {
      index_write %k, %at, %x {axis = 1}
      return
    }"""
    for places in ([9], [-1], [3, 9, -1, 2**40]):
        k, x = elements(4, 9, 5), elements(4, len(places), 5)
        func = parse_func(text)
        machine = Machine(func, [k, torch.tensor(places), x], interpreted, backend="cuda")
        want = k.clone()
        if len(places) > 1:
            want[:, 3] = x[:, 0]
        assert torch.equal(machine.memory[func.args[0]], want)


def test_the_last_of_equal_places_counts_among_many() -> None:
    text = """func @f(%k: buffer<i64[40, 3]>, %at: i32[S], %x: i64[S, 3]) {
      index_write %k, %at, %x {axis = 0}
      return
    }"""
    at = integers(333, below=40, wraps=False, dtype=torch.int32)
    k, x = elements(40, 3, dtype=torch.int64), elements(333, 3, dtype=torch.int64)
    want = k.clone()
    for i in range(len(at)):
        want[int(at[i])] = x[i]
    func = parse_func(text)
    machine = Machine(func, [k, at, x], interpreted, backend="cuda")
    assert torch.equal(machine.memory[func.args[0]], want)


@pytest.mark.parametrize("count", [1, 3, 9, 20])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "bool"])
def test_a_window_moves_on(dtype: str, count: int) -> None:
    """From a transposed source, into rows that lie side by side; more slices than in flight."""
    text = f"""func @f(%k: {dtype}[2, S, 3, 6], %c: buffer<{dtype}[2, 3, 40, 6]>)
        where S in 1..40 {{
      %t = permute %k {{dims = (0, 2, 1, 3)}}
      shift_write %c, %t {{axis = 2}}
      %r = read %c
      return %r
    }}"""
    kind = DTYPES[dtype]
    check(text, [elements(2, count, 3, 6, dtype=kind), elements(2, 3, 40, 6, dtype=kind)])


ARGMAX = """func @f(%x: TYPE[B, WIDTH]) {
  %y = argmax %x {axis = 1}
  return %y
}"""


@pytest.mark.parametrize("width", [1, 2, 63, 4096, 5003])
@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_argmax(dtype: str, width: int) -> None:
    """bf16 has many equal elements: the first counts, in whichever part it lies."""
    text = ARGMAX.replace("TYPE", dtype).replace("WIDTH", str(width))
    for rows in (0, 3):
        check(text, [seeded(rows, width, dtype=oracle.DTYPES[dtype])])


def test_argmax_of_strided_rows_and_unknown_widths() -> None:
    text = """func @f(%x: bf16[B, 3, V], %z: f32[B, 70]) {
      %last = slice %x {axis = 1, start = 2, stop = 3}
      %y = argmax %last {axis = 2}
      %part = slice %z {axis = 1, start = 3, stop = 68}
      %w = argmax %part {axis = 1, keepdim = true}
      return %y, %w
    }"""
    x, z = seeded(2, 3, 5000, dtype=torch.bfloat16), seeded(2, 70, dtype=torch.float32)
    check(text, [x, z])


@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_argmax_of_special_rows(dtype: str) -> None:
    x = torch.full((7, 5001), -torch.inf).to(oracle.DTYPES[dtype])
    x[1, 5000] = torch.finfo(x.dtype).min
    x[2, 4000], x[2, 4500] = torch.inf, torch.inf
    x[3, 4999], x[3, 5000], x[3, 10] = torch.nan, torch.nan, torch.inf
    x[4] = -0.0
    x[4, 5] = 0.0
    x[5, 0] = torch.nan
    x[6, 700], x[6, 4500] = 3.0, torch.nan
    check(ARGMAX.replace("TYPE", dtype).replace("WIDTH", "5001"), [x])


def test_binaries_of_released_sizes_move_16_bytes_at_once(binary_cache: Cache) -> None:
    """An embedding, a write into a cache, and the choice of the next token."""
    text = """func @f(%w: bf16[151936, 4096], %i: i64[B, S], %at: i64[S],
                    %k: bf16[B, 8, S, 128], %c: buffer<bf16[B, 8, 4096, 128]>) {
      %y = embedding %w, %i
      index_write %c, %at, %k {axis = 2}
      return %y
    }"""
    wide = [made.binary for _, made in binaries(text, binary_cache, GPU_TARGETS[1:2])]
    moving = [b for b in wide if not b.symbol.startswith("index_last")]
    assert all(b.resources["widest_load"] == 128 for b in moving)
    assert all(b.resources["narrowest_store"] == 128 for b in moving)


def test_binaries_of_argmax(binary_cache: Cache) -> None:
    text = ARGMAX.replace("TYPE", "bf16").replace("WIDTH", "151936")
    widest = [made.binary.resources["widest_load"] for _, made in binaries(text, binary_cache)]
    assert widest == [128] * len(GPU_TARGETS) + [64] * len(GPU_TARGETS)
