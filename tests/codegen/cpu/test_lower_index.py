"""Indexing from a func in text form to numbers: which dims are walked, and which are copied."""

from __future__ import annotations

import pytest
import torch

from fuseline.codegen.cpu.gather import GatherKernel
from fuseline.codegen.lower import emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.cases import Make, check_cases
from tests.codegen.cpu.region_harness import check_func, native
from tests.codegen.index_cases import INDEX, ROWS, elements
from tests.codegen.machine import Machine


@pytest.mark.parametrize("case", INDEX)
def test_cases(case: Make) -> None:
    check_cases(case, check_func)


def kernels(text: str) -> list[GatherKernel]:
    func = parse_func(text)
    steps = [launch.kernel for step in emit(func, LayoutMap(func)) for launch in step.launches]
    return [kernel for kernel in steps if isinstance(kernel, GatherKernel)]


def test_rows_are_copied_whole() -> None:
    (kernel,) = kernels(ROWS)
    assert kernel.rank == 1, "the dims of a dense index are one, those behind are the row"


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("index %x, [%i] {axes = (0,)}", (-12, 11, 2**40)),
        ("index %x, [%i] {axes = (1,)}", (-7, 6)),
        ("index_select %x, %i {axis = 0}", (-1, 11)),
        ("embedding %x, %i", (-1, 11)),
    ],
)
def test_an_index_outside_is_a_fault(line: str, bad: tuple[int, ...]) -> None:
    text = f"func @f(%x: f32[11, 6], %i: i64[S]) {{\n%y = {line}\nreturn %y\n}}"
    for index in bad:
        func = parse_func(text)
        with pytest.raises(IndexError):
            Machine(func, [elements(11, 6), torch.tensor([3, index, 0])], native(2), workers=2)


def test_indices_of_other_types_are_refused() -> None:
    func = parse_func("""func @f(%x: f32[11, 6], %i: i16[S]) {
      %y = index %x, [%i] {axes = (0,)}
      return %y
    }""")
    (step,) = emit(func, LayoutMap(func))
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
    (step,) = emit(func, LayoutMap(func))
    assert step.refusal == reason
