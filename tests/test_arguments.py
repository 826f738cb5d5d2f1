"""What a program takes beside the arguments of a call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fuseline.arguments import Numbered
from fuseline.frontend.captured import Argument
from fuseline.ir.text import parse_func
from fuseline.latent_caches import LatentCaches

TEXT = """func @f(%cache: buffer<f32[1, 2, 4, 8]>, %p: i64[] = number "p" in 0..9, %n: int<A>,
                  %latent: buffer<f32[1, 4, 3]> = state "cache", %held: i64[] = count "A") {
  %y = add %p, %held
  return %y
}"""


def test_own_state_and_counts_follow_the_arguments_in_the_order_of_the_func() -> None:
    func = parse_func(TEXT)
    taken: list[Argument] = []

    def run(arguments: Sequence[Argument]) -> list[Tensor]:
        taken[:] = arguments
        return []

    program = LatentCaches(Numbered.of(run, func, torch.device("cpu")), func)
    cache = torch.zeros(1, 2, 4, 8)
    for active in (3, 5):
        program([cache, 7, active])
        own = [t.item() if isinstance(t, Tensor) and not t.dim() else t for t in taken]
        assert own[0] is cache
        assert own[1:3] == [7, active]
        assert isinstance(own[3], Tensor)
        assert own[3].shape == (1, 4, 3)
        assert own[4:] == [active]
        assert isinstance(taken[1], Tensor)
        assert isinstance(taken[2], int), "it is a size as well"
