"""Layouts: which views cost nothing, and how rows are walked; every case is checked on a tensor."""

from __future__ import annotations

import itertools

import pytest
import torch

from fuseline.ir.core import Func
from fuseline.ir.layout import (
    Layout,
    LayoutMap,
    dense,
    extent_of,
    reshape_layout,
    split_rows,
)
from fuseline.ir.text import parse_func
from fuseline.ir.types import Dim, dim, substitute, symbol


def _places(func: Func) -> LayoutMap:
    return LayoutMap(func)


def test_view_ops_are_strides_on_their_source() -> None:
    """The way from a projection to attention heads needs no copy, with symbolic dims."""
    func = parse_func("""func @f(%x: f32[B, S, 768]) {
      %h = reshape %x {shape = (B, S, 12, 64)}
      %t = permute %h {dims = (0, 2, 1, 3)}
      %s = slice %t {axis = 3, start = 16, stop = 48}
      return %s
    }""")
    layouts = _places(func)
    b, s = symbol("B"), symbol("S")
    assert layouts.root(func.returns[0]) is func.args[0]
    assert layouts.layout(func.returns[0]) == Layout(16, (768 * s, 64, 768, 1))
    assert extent_of((b, 12, s, 32), layouts.layout(func.returns[0])) == dim(768 * s * b - 32)


def test_reshape_across_permuted_dims_needs_a_copy() -> None:
    """Merging heads that lie behind the tokens is not a matter of strides."""
    func = parse_func("""func @f(%x: f32[B, S, 12, 64]) {
      %t = permute %x {dims = (0, 2, 1, 3)}
      %r = reshape %t {shape = (B, 12, <64*S>)}
      return %r
    }""")
    layouts = _places(func)
    assert not layouts.is_view(func.ops[1])
    assert layouts.layout(func.returns[0]) == dense((symbol("B"), 12, dim(64 * symbol("S"))))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 5, 6), (7,), (2, 1, 3, 4), (0, 3)])
@pytest.mark.parametrize("order", [0, 1, -1])
def test_reshape_layout_agrees_with_torch(shape: tuple[int, ...], order: int) -> None:
    """Wherever a layout is found, reading through it gives what reshape gives."""
    perm = list(itertools.permutations(range(len(shape))))[order % max(1, len(shape))]
    x = torch.arange(torch.Size(shape).numel()).reshape(shape).permute(perm)
    for target in _factorisations(x.numel(), 3):
        layout = reshape_layout(tuple(x.shape), Layout(0, tuple(x.stride())), target)
        if layout is None or not x.numel():
            continue
        strides = [substitute(s, {}) for s in layout.strides]
        assert torch.equal(x.as_strided(target, strides), x.reshape(target))


def test_reshape_layout_finds_every_view_that_torch_finds() -> None:
    """A copy that torch would not make is a copy too many."""
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for perm in itertools.permutations(range(4)):
        y = x.permute(perm)
        for target in _factorisations(y.numel(), 3):
            try:
                y.view(target)
            except RuntimeError:
                continue
            assert reshape_layout(tuple(y.shape), Layout(0, tuple(y.stride())), target) is not None


def _factorisations(size: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 1 or size == 0:
        return [(size,)]
    return [
        (first, *rest)
        for first in range(1, size + 1)
        if size % first == 0
        for rest in _factorisations(size // first, parts - 1)
    ]


def test_split_rows_walks_two_levels() -> None:
    """Heads of a slice of a merged projection: tokens outside, heads inside."""
    s = symbol("S")
    shape: tuple[Dim, ...] = (2, s, 4, 8)
    source = Layout(0, (96 * s, 96, 8, 1))
    rows = split_rows(shape, [source, dense(shape)])
    assert rows is not None
    assert (rows.outer, rows.inner) == (2 * s, 4)
    assert rows.strides == ((96, 8), (32, 8))


def test_no_split_rows_where_elements_are_apart() -> None:
    """A transposed last dim has no rows."""
    assert split_rows((3, 4), [Layout(0, (1, 3))]) is None


def test_row_stride_of_one_row_is_its_width() -> None:
    """Extents of 1 carry no stride that matters."""
    assert Layout(0, (999, 999, 1)).row_stride((1, 1, 64)) == 64
    assert Layout(0, (640, 128, 1)).row_stride((2, 5, 64)) == 128
    assert Layout(0, (1000, 128, 1)).row_stride((2, 5, 64)) is None


def test_expand_repeats_extents_of_one_only() -> None:
    """Tracing may write an extent in two ways, and only a value of torch's knows them equal."""
    func = parse_func("""func @f(%x: f32[B, S, 1, 4]) {
      %y = expand %x {shape = (B, T, 3, 4)}
      return %y
    }""")
    s = symbol("S")
    assert _places(func).layout(func.returns[0]) == Layout(0, (4 * s, 4, 0, 1))
