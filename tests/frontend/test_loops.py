"""Experts in a loop that cannot be traced are named with their place and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
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
        out = torch.zeros_like(x)
        chosen: Any = indices
        for e in chosen.unique().tolist():  # data decides
            token, slot = torch.where(indices == e)
            out[token] += self.experts[e](x[token]) * weights[token, slot, None]
        return out


def combine(x: Tensor, weights: Tensor, indices: Tensor, experts: nn.ModuleList) -> Tensor:
    """The sum over experts that are not the function's own."""
    out = torch.zeros_like(x)
    chosen: Any = indices
    for e in chosen.unique().tolist():  # data decides
        token, slot = torch.where(indices == e)
        expert = experts[e]
        out.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
    return out


class Given(Inline):
    """The loop stands in a function that is given the experts."""

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.router(x).topk(2, dim=-1)
        return combine(x, weights, indices, self.experts)


class Matrices(Inline):
    """Matrices in the place of modules, those of an expert taken by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.router(x).topk(2, dim=-1)
        mask = F.one_hot(indices, 3).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for hit in mask.sum((1, 2)).nonzero():  # data decides
            number = int(hit[0].item())
            slot, token = torch.where(mask[number])
            matrix = self.matrices[number]
            out.index_add_(0, token, x[token] @ matrix * weights[token, slot, None])
        return out


class Counts(Inline):
    """jetmoe: the tokens of each expert are split off by how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.router(x).topk(2, dim=-1)
        chosen = torch.zeros(x.shape[0], 3).scatter(1, indices, 1).long()
        counts: list[int] = cast("Any", chosen.sum(0)).tolist()  # data decides
        order = indices.flatten().sort().indices
        parts: tuple[Tensor, ...] = cast("Any", x[order // 2]).split(counts)
        rows = torch.cat([expert(p) for expert, p in zip(self.experts, parts, strict=True)])
        rows = rows * weights.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, order // 2, rows)


class Beam(Inline):
    """A choice, and a loop that goes on by data, over no experts."""

    def forward(self, x: Tensor) -> Tensor:
        scores, best = self.router(x).topk(2, dim=-1)
        total = torch.zeros(())
        for row in range(best.shape[0]):
            if best[row, 0].item() == 0:  # data decides
                total = total + scores[row].sum()
        return total


class Layers(Inline):
    """Layers in a loop, of which one goes on by what its choice is."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.experts:
            best = self.router(x).topk(1, dim=-1).indices
            if best.sum() > 2:  # data decides
                x = layer(x)
        return x


class Nothing(nn.Module):
    """Data decides, and nothing was chosen."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0].sum(0)


def missed(module: nn.Module, pattern: str = "moe") -> list[tuple[str, str]]:
    """Places and reasons of the missed sites after one call, whose result is eager's."""
    compiled, _ = record(module)
    x = torch.randn(5, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
    report: Report = compiled.report()
    return [(s.where, s.reason) for s in report.sites if s.pattern == pattern]


@pytest.mark.parametrize("module", [Inline(), Apart(), Given(), Matrices(), Counts()])
def test_a_loop_is_named(module: nn.Module) -> None:
    ((where, reason),) = missed(module)
    assert where in {f"test_loops.py:{line}" for line in LINES}
    assert 'set_experts_implementation("grouped_mm")' in reason
    assert "the program goes on by what a tensor holds" in reason


@pytest.mark.parametrize("module", [Beam(), Layers()])
def test_no_experts_where_another_loop_goes_on_by_data(module: nn.Module) -> None:
    """A choice alone makes no experts; the place and the cause are named all the same."""
    assert not missed(module)
    where, reason = missed(module, "graph_break")[0]
    assert where in {f"test_loops.py:{line}" for line in LINES}
    assert "experts" not in reason


def test_no_site_where_nothing_was_chosen_but_the_first_lines_tell_of_the_break() -> None:
    assert not missed(Nothing())
    compiled, _ = record(Nothing())
    compiled(torch.randn(5, 8))
    line = compiled.report().summary()
    assert line.startswith("graph breaks: ")
    assert line.endswith("runs in eager (Dynamic shape operator)")
