"""Slices that begin between two multiples of 16 bytes; the rule itself needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fuseline.runtime.gpu.aligned import ALIGNMENT, Aligned
from fuseline.runtime.plan import ArgSpec, Plan

PLAN = Plan(
    args=(
        ArgSpec("x", "tensor", torch.float32, (3,), (1,)),
        ArgSpec("state", "tensor", torch.float32, (3,), (1,), written=True),
        ArgSpec("n", "int"),
    ),
    buffers=(),
    steps=(),
    returns=(),
    symbols={},
    ranges={},
)


def run(arguments: Sequence[object]) -> list[Tensor]:
    x, state, _ = arguments
    assert isinstance(x, Tensor)
    assert isinstance(state, Tensor)
    assert x.data_ptr() % ALIGNMENT == 0
    assert state.data_ptr() % ALIGNMENT == 0
    state += x
    return [x + 1]


def test_slices_are_copied_and_state_is_copied_back() -> None:
    x, memory = torch.arange(4.0), torch.zeros(5)
    (y,) = Aligned(run, PLAN)([x[1:], memory[1:4], 7])
    assert torch.equal(y, x[1:] + 1)
    assert torch.equal(memory, torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0]))


def test_what_is_aligned_is_passed_on() -> None:
    x, state = torch.arange(3.0), torch.zeros(3)
    seen: list[object] = []
    Aligned(lambda given: (seen.append(given), run(given))[1], PLAN)(given := [x, state, 7])
    assert seen == [given]
    assert seen[0] is given
