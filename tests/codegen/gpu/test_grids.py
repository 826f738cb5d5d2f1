"""Grids of huge sizes: what the axes take, and where the blocks of a far place are.

The axes y and z end at 65535 blocks, x at 2^31 - 1. What a kernel computes from the number of a
block is run here for far ones, in integers of 32 bits that wrap as those of a GPU do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fuseline.codegen.gpu.places import Places
from fuseline.codegen.gpu.tiles import Choice, element_tiles, one_tile, square_tiles
from fuseline.codegen.lower import Launch, emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.ir.types import Dim, substitute, symbol
from fuseline.runtime.gpu.kernels import MOST_BLOCKS
from tests.codegen.gpu.test_attention import released as attention
from tests.codegen.gpu.test_latent import released as latent

HUGE = 1 << 23
ROWS, WIDTH = symbol("R"), symbol("W")

CASES = {
    "rows of any width": """func @f(%x: bf16[S, W], %y: bf16[S, 1]) {
      %z = mul %x, %y
      return %z
    }""",
    "transposed": """func @f(%x: bf16[2, S, W]) {
      %p = permute %x {dims = (0, 2, 1)}
      %y = copy %p
      return %y
    }""",
    "product in float32": """func @f(%x: f32[S, 64], %w: bf16[300, 64]) {
      %y = wide_linear %x, %w
      return %y
    }""",
    "product by columns": """func @f(%x: bf16[S, 8192], %w: bf16[8192, 100]) {
      %t = permute %w {dims = (1, 0)}
      %y = linear %x, %t
      return %y
    }""",
    "argmax": """func @f(%x: f32[S, W]) {
      %y = argmax %x {axis = 1}
      return %y
    }""",
    "gathered rows": """func @f(%x: bf16[100, W], %i: i64[S]) {
      %y = index_select %x, %i {axis = 0}
      return %y
    }""",
    "attention": attention("qwen3-8b"),
    "latent attention": latent(),
}


def launches(text: str) -> list[Launch]:
    func = parse_func(text)
    steps = emit(func, LayoutMap(func), "cuda")
    assert not [step.refusal for step in steps if step.refusal]
    return [launch for step in steps for launch in step.launches]


@pytest.mark.parametrize("name", CASES)
def test_no_axis_takes_more_than_it_can(name: str) -> None:
    """For many rows, and for few rows that are long; only the first axis grows with them."""
    checked = 0
    for launch in launches(CASES[name]):
        for one in (launch, *launch.others):
            for sizes in ({"S": HUGE, "W": 16, "B": 1}, {"S": 2, "W": 1 << 30, "B": 1}):
                blocks = [substitute(extent, sizes) for extent in one.grid]
                assert all(b <= most for b, most in zip(blocks, MOST_BLOCKS, strict=True)), one
                checked += bool(any(blocks))
    assert checked


class _Tl:
    """As much of Triton's language as the places of a block need, with NumPy's integers."""

    int64 = np.int64

    def __init__(self, block: int) -> None:
        self.block = np.int32(block)

    def program_id(self, axis: int) -> Any:
        assert axis == 0
        return _Integer(np.array(self.block))

    def arange(self, first: int, stop: int) -> Any:
        return _Integer(np.arange(first, stop, dtype=np.int32))


class _Integer:
    """An array of integers: plain numbers take its type, as in Triton."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def to(self, dtype: Any) -> _Integer:
        return _Integer(self.array.astype(dtype))

    def __getitem__(self, key: Any) -> _Integer:
        return _Integer(self.array[key])

    def _other(self, other: Any) -> Any:
        return other.array if isinstance(other, _Integer) else self.array.dtype.type(other)

    def __add__(self, other: Any) -> _Integer:
        return _Integer(self.array + self._other(other))

    def __mul__(self, other: Any) -> _Integer:
        return _Integer(self.array * self._other(other))

    def __floordiv__(self, other: Any) -> _Integer:
        return _Integer(self.array // self._other(other))

    def __mod__(self, other: Any) -> _Integer:
        return _Integer(self.array % self._other(other))

    def __lt__(self, other: Any) -> _Integer:
        return _Integer(self.array < self._other(other))


def place(places: Places, block: int, sizes: dict[str, int]) -> dict[str, Any]:
    """The names that the first statements of a block give."""
    lines = [*places.columns(), *places.start()]
    lines = [*lines[len(places.columns()) :], *places.columns()]
    names: dict[str, Any] = {"tl": _Tl(block)}
    names |= {name: substitute(value, sizes) for name, value in places.values.items()}
    exec("\n".join(lines), names)
    return {k: v.array for k, v in names.items() if isinstance(v, _Integer)}


def tiles_of(kind: str, outer: Sequence[Dim], inner: Dim) -> list[Choice]:
    if kind == "square":
        return square_tiles(outer, inner)
    if kind == "elements":
        return element_tiles(outer, inner, 8)
    return [one_tile(outer, inner, 8, many=many) for many in (False, True)]


@pytest.mark.parametrize(("rows", "width"), [(HUGE, 200), (3 * HUGE + 1, 70), (5, HUGE + 3)])
@pytest.mark.parametrize("kind", ["square", "elements", "one"])
def test_blocks_of_far_places(kind: str, rows: int, width: int) -> None:
    """Every block has elements of its own, and the last ones those at the end."""
    outer: tuple[Dim, ...] = (3, ROWS)
    sizes = {"R": rows, "W": width}
    for inner in (WIDTH, width):
        for choice in tiles_of(kind, outer, inner):
            if choice.when and not _is_meant(choice, sizes):
                continue
            tile = choice.tile
            (extent,) = choice.grid
            blocks = substitute(extent, sizes)
            down = -(-(rows if tile.rows == "tiled" else 3 * rows) // tile.block_rows)
            along = -(-width // tile.block)
            assert blocks == down * along * (3 if tile.rows == "tiled" else 1)
            for block in (0, 1, blocks // 3, blocks - along - 1, blocks - 1):
                found = place(Places(tile, outer, inner), block, sizes)
                unit, column = divmod(block, along)
                batch, row = divmod(unit, down) if tile.rows == "tiled" else (None, unit)
                assert found["row_R"][0, 0] == row * tile.block_rows
                assert found["col_N"][0, 0] == column * tile.block
                number = row * tile.block_rows
                first = number // rows if batch is None else batch
                assert found["i0"].reshape(-1)[0] == first
                assert found["i1"].reshape(-1)[0] == (number % rows if batch is None else number)


def _is_meant(choice: Choice, sizes: dict[str, int]) -> bool:
    assert choice.when is not None
    value, low, high = choice.when
    size = substitute(value, sizes)
    return low <= size and (high is None or size <= high)
