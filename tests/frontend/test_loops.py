"""Experts in a loop that cannot be traced are named with their place and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fuseline.report import Report
from tests.frontend.helpers import record

SOURCE = Path(__file__).read_text().splitlines()
LINES = {n for n, line in enumerate(SOURCE, 1) if line.endswith("# data decides")}


class Inline(nn.Module):
    """Router and loop in one function, which Dynamo leaves to eager as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.router(x).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(indices == e)  # data decides
            out.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
        return out


class Apart(Inline):
    """The loop stands in a function of its own, behind the router's graph."""

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.router(x).topk(2, dim=-1)
        return self.combine(x, weights, indices)

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        hit = (indices == 1).nonzero()  # data decides
        return x + weights.sum() * hit.sum()


class Nothing(nn.Module):
    """Data decides, and nothing was chosen."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0].sum(0)


def missed(module: nn.Module) -> list[tuple[str, str]]:
    """Places and reasons of the missed sites after one call, whose result is eager's."""
    compiled, _ = record(module)
    x = torch.randn(5, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
    report: Report = compiled.report()
    return [(s.where, s.reason) for s in report.sites if s.pattern == "moe"]


@pytest.mark.parametrize("module", [Inline(), Apart()])
def test_a_loop_is_named(module: nn.Module) -> None:
    ((where, reason),) = missed(module)
    assert where in {f"test_loops.py:{line}" for line in LINES}
    assert 'set_experts_implementation("grouped_mm")' in reason
    assert reason.startswith("Dynamic shape operator")


def test_no_word_where_nothing_was_chosen() -> None:
    assert not missed(Nothing())
