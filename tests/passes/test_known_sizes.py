"""Sizes that only the data tells are forgotten where none is left, and refused where one is."""

from __future__ import annotations

import pytest

from fuseline.ir.text import parse_func, print_func
from fuseline.passes.known_sizes import KnownSizes, UnknownSizeError
from fuseline.testing import run_passes

PICKED = """func @f(%x: f32[B, 4]) where u0 in 0.. {
  %h = aten.call [%x] {target = "aten.nonzero.default", args = ($0,), types = (i64[u0, 2],)}
  %r = reshape %h {shape = (<2*u0>,)}
  return %r
}"""


def test_no_plan_for_a_size_of_data() -> None:
    with pytest.raises(UnknownSizeError, match="what aten.nonzero.default gives"):
        run_passes(KnownSizes(), parse_func(PICKED))


def test_sizes_of_data_are_declared() -> None:
    """The text says which symbols no argument gives, and comes back."""
    func = parse_func(PICKED)
    assert func.unknown_sizes == {"u0"}
    assert "where u0 in 0.." in print_func(func)
    assert print_func(parse_func(print_func(func))) == print_func(func)
