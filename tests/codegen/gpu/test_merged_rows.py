"""merged_rows in Triton: rows of any widths of the same tokens, in one launch."""

from __future__ import annotations

import pytest

from fuseline.codegen.lower import Refusal, emit, lower
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import substitute
from fuseline.runtime.cache import Cache
from tests.codegen.cases import Make, check_numbers
from tests.codegen.gpu.harness import binaries, check
from tests.codegen.merged_cases import MERGED, merged

PROLOGUE = merged("bf16", (1536, 512), tokens=1, lead=0, rotated=64, style="deinterleave").text


@pytest.mark.parametrize("case", MERGED)
def test_cases(case: Make) -> None:
    check_numbers(case, check)


def test_one_launch_with_a_block_for_each_row() -> None:
    """Of a few tokens; the ranges are those of the rows of all three."""
    func = parse_func(PROLOGUE)
    (step,) = emit(func, LayoutMap(func), "cuda")
    binding = {"B": 1, "S": 1}
    sizes = [launch.when for launch in step.launches]
    assert [(low, high) for _, low, high in filter(None, sizes)] == [(0, 16384), (16385, None)]
    for launch in (step.launches[0], *step.launches[0].others):
        assert substitute(launch.grid[0], binding) == 3
        assert substitute(launch.grid[0], {"B": 1, "S": 0}) == 0


def test_binaries_move_16_bytes_at_once_and_do_not_spill(binary_cache: Cache) -> None:
    found = binaries(PROLOGUE, binary_cache)
    assert found
    for target, made in found:
        resources = made.binary.resources
        assert resources["widest_load"] == resources["narrowest_load"] == 128, target.name
        assert resources["narrowest_store"] == 128, target.name


REFUSED = {
    "f64": ("merged_rows [%x, %x], [], []", "%x: f64[B, S, 8]", "f64 operands"),
    "unknown width": (
        "merged_rows [%x, %x], [], []",
        "%x: f32[B, S, L]",
        "unknown width: f32[B, S, L]",
    ),
    "long rows": ("merged_rows [%x, %x], [], []", "%x: f32[B, S, 8200]", "65536 bytes of row0"),
}
"""An op, its arguments, and a part of the reason why it has no kernel."""


@pytest.mark.parametrize("name", REFUSED)
def test_no_kernel_for_what_it_cannot_do(name: str) -> None:
    op, arguments, reason = REFUSED[name]
    func = parse_func(f"func @f({arguments}) {{ %y, %z = {op}  return %y, %z }}")
    found = lower(func.ops[0], LayoutMap(func), "cuda")
    assert isinstance(found, Refusal)
    assert reason in found.reason
