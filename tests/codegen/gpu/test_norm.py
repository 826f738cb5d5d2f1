"""Row norms in Triton: numbers through the interpreter."""

from __future__ import annotations

import pytest

from fuseline.codegen.gpu.lower_rows import FEW_ROWS
from fuseline.runtime.cache import Cache
from tests.codegen.cases import Make, check_numbers
from tests.codegen.gpu.harness import binaries, check
from tests.codegen.oracle import DTYPES, seeded
from tests.codegen.row_cases import ROWS


@pytest.mark.parametrize("case", ROWS)
def test_cases(case: Make) -> None:
    check_numbers(case, check)


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
