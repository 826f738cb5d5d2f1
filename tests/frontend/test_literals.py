"""A tensor of one element that a program spells is a constant of the func."""

from __future__ import annotations

import torch
from torch import Tensor

from fuseline.ir.ops.create import Full
from fuseline.ir.types import DType
from tests.frontend.helpers import record


def test_an_index_of_one_place_is_known() -> None:
    """As a sliding cache that is full writes its last row."""

    def last_row(x: Tensor, row: Tensor) -> Tensor:
        y = x.clone()
        y[:, torch.tensor([-1])] = row
        return y

    run, recording = record(last_row)
    x, row = torch.randn(3, 5, 4), torch.randn(3, 1, 4)
    assert torch.equal(run(x, row), last_row(x, row))
    (func,) = recording.funcs
    (full,) = [op for op in func if isinstance(op, Full)]
    assert (full.value, full.shape, full.dtype) == (-1, (1,), DType.I64)


def test_longer_literals_stay_tensors() -> None:
    def pick(x: Tensor) -> Tensor:
        return x[torch.tensor([2, 0])]

    run, recording = record(pick)
    x = torch.randn(3, 5)
    assert torch.equal(run(x), pick(x))
    (func,) = recording.funcs
    assert not [op for op in func if isinstance(op, Full)]
    assert [arg.origin.kind for arg in func.args if arg.origin].count("const") == 1
