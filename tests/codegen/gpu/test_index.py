"""Gathers, writes by index and argmax in Triton, from a func in text form: copies are exact."""

from __future__ import annotations

import pytest
import torch

from fuseline.codegen.gpu.gather import GatherKernel
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen import oracle
from tests.codegen.cases import Make, check_cases
from tests.codegen.gpu.harness import binaries, run_func
from tests.codegen.gpu.region_harness import check_func
from tests.codegen.index_cases import INDEX, ROWS, elements, integers
from tests.codegen.oracle import seeded


@pytest.mark.parametrize("case", INDEX)
def test_cases(case: Make) -> None:
    check_cases(case, check_func)


def kernels(text: str) -> list[GatherKernel]:
    func = parse_func(text)
    steps = [
        launch.kernel for step in emit(func, LayoutMap(func), "cuda") for launch in step.launches
    ]
    return [kernel for kernel in steps if isinstance(kernel, GatherKernel)]


def test_rows_are_copied_whole() -> None:
    small, large = kernels(ROWS)
    assert len(small.indices[0].place.split("+")) == 1, "the dims of a dense index are one"
    assert large.tile.block == 32, "those behind are the row"


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
        made = run_func(func, [x, at]).tensor(func.returns[0])
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
        machine = run_func(func, [k, torch.tensor(places), x])
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
    machine = run_func(func, [k, at, x])
    assert torch.equal(machine.memory[func.args[0]], want)


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
        check_func(text, [seeded(rows, width, dtype=oracle.DTYPES[dtype])])


def test_argmax_of_strided_rows_and_unknown_widths() -> None:
    text = """func @f(%x: bf16[B, 3, V], %z: f32[B, 70]) {
      %last = slice %x {axis = 1, start = 2, stop = 3}
      %y = argmax %last {axis = 2}
      %part = slice %z {axis = 1, start = 3, stop = 68}
      %w = argmax %part {axis = 1, keepdim = true}
      return %y, %w
    }"""
    x, z = seeded(2, 3, 5000, dtype=torch.bfloat16), seeded(2, 70, dtype=torch.float32)
    check_func(text, [x, z])


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
    check_func(ARGMAX.replace("TYPE", dtype).replace("WIDTH", "5001"), [x])


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
