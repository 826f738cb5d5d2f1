from __future__ import annotations

import importlib
from typing import Any

import pytest
import sympy

from fuseline.frontend.dims import UnknownSize, import_dim
from fuseline.frontend.places import tidy
from fuseline.ir.types import floor_div, symbol


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("L['self']._modules['model']._modules['norm']._parameters['weight']", "model.norm.weight"),
        ("L['self']._modules['layers']._modules['0']._buffers['inv_freq']", "layers.0.inv_freq"),
        ("L['self'].model.layers.3.mlp", "model.layers.3.mlp"),
        ("L['kwargs']['past_key_values'].layers[1].keys", "past_key_values.layers[1].keys"),
        ("L['args'][0]", "args[0]"),
        ("L['x']", "x"),
        ("", ""),
    ],
)
def test_names_are_written_as_a_person_would(source: str, name: str) -> None:
    assert tidy(source) == name


def test_sizes_become_dims() -> None:
    functions: Any = importlib.import_module("torch.utils._sympy.functions")
    rows, width = (sympy.Symbol(n, positive=True, integer=True) for n in ("s0", "s1"))
    ours = symbol("s0")
    assert import_dim(7) == 7
    assert import_dim(sympy.Integer(7)) == 7
    assert import_dim(2 * rows + 1) == 2 * ours + 1
    assert import_dim(rows**2 * width) == ours**2 * symbol("s1")
    assert import_dim(functions.FloorDiv(rows, 2)) == floor_div(ours, 2)
    assert import_dim(functions.PythonMod(rows, sympy.Integer(4))) == sympy.Mod(ours, 4)
    assert import_dim(functions.Max(rows, 4)) == sympy.Max(ours, 4)


def test_sizes_by_other_functions_are_unknown() -> None:
    with pytest.raises(UnknownSize, match="exp"):
        import_dim(sympy.exp(sympy.Symbol("s0")))
