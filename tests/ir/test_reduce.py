"""Reductions: what the references give is of the type that the ops say."""

from __future__ import annotations

import pytest
import torch

from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func


@pytest.mark.parametrize("dtype", ["bool", "u8", "i32", "f32"])
@pytest.mark.parametrize("op", ["any", "all"])
def test_any_and_all_are_bool(op: str, dtype: str) -> None:
    """Torch gives u8 for u8."""
    func = parse_func(f"""func @f(%x: {dtype}[S, 3]) {{
      %y = {op} %x {{axes = (1,)}}
      return %y
    }}""")
    x = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0]]).to(func.args[0].dtype.torch)
    (y,) = evaluate(func, [x])
    assert y.dtype is func.returns[0].dtype.torch is torch.bool
    expected = {"any": [True, True, False], "all": [False, True, False]}[op]
    assert torch.equal(y, torch.tensor(expected))
