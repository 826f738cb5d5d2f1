"""Loops over the experts that have tokens, or that ask in each turn for them, are one site too."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from fuseline import _torch
from fuseline.report import Report
from tests.e2e.loops import (
    CHOSEN,
    COUNT,
    HIDDEN,
    INNER,
    Block,
    follows_numbers_rule,
    made,
    report_after,
)

pytestmark = pytest.mark.skipif(
    not _torch.can_trace_all_turns(), reason="the Dynamo of this torch has other insides"
)


def hits(mask: Tensor) -> Any:
    """The experts that have tokens."""
    return torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()


class Skipping(Block):
    """Each turn asks whether its expert has tokens."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            if token.numel() == 0:
                continue
            final[token] += expert(x[token]) * weights[token, slot, None]
        return final


class Asking(Block):
    """As that, but the other way round, and by the shape."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e in range(COUNT):
            token, slot = torch.where(selected == e)
            if token.shape[0] > 0:
                gate, up = F.linear(x[token], self.w1[e]).chunk(2, dim=-1)
                out = F.linear(F.silu(gate) * up, self.w2[e])
                final = final.index_add(0, token, out * weights[token, slot, None])
        return final


class Hit(Block):
    """dbrx: over those that are hit, one class more than experts, and all matrices in one."""

    def __init__(self) -> None:
        super().__init__()
        shape = (COUNT * INNER, HIDDEN)
        self.gates, self.ups, self.downs = (
            nn.Parameter(torch.randn(shape) * 0.2) for _ in range(3)
        )

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        with torch.no_grad():
            mask = F.one_hot(selected, COUNT + 1).permute(2, 1, 0)
            hit = hits(mask)
        shape = (-1, INNER, HIDDEN)
        for e in hit:
            e = e[0]
            with torch.no_grad():
                slot, token = torch.where(mask[e])
            gate, up = self.gates.view(shape)[e], self.ups.view(shape)[e]
            down = self.downs.view(shape)[e]
            hidden = F.silu(x[token].matmul(gate.t())) * x[token].matmul(up.t())
            final.index_add_(0, token, hidden.matmul(down) * weights[token, slot, None])
        return final


class HitItem(Block):
    """longcat_flash: the number as ``item()``, and a question for tokens nevertheless."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, num_classes=COUNT).permute(2, 1, 0)
        hit = hits(mask)
        for number in hit:
            e = int(number.item())
            slot, token = torch.where(mask[e].squeeze(0))
            if token.numel() == 0:
                continue
            out = self.experts[e](x[token]) * weights[token, slot, None]
            final.index_add_(0, token, out.to(x.dtype))
        return final


class HitNumber(Block):
    """The number as an element's ``item()``."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, num_classes=COUNT).permute(2, 1, 0)
        hit = hits(mask)
        for number in hit:
            e = int(number[0].item())
            slot, token = torch.where(mask[e])
            gate, up = F.linear(x[token], self.w1[e]).chunk(2, dim=-1)
            out = F.linear(F.silu(gate) * up, self.w2[e])
            final.index_add_(0, token, out * weights[token, slot, None])
        return final


class HitList(Block):
    """The numbers as a list."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, num_classes=COUNT).permute(2, 1, 0)
        found: Any = (mask.sum(dim=(-1, -2)) > 0).nonzero(as_tuple=True)[0]
        hit = found.tolist()
        for e in hit:
            slot, token = torch.where(mask[e])
            final[token] += self.experts[e](x[token]) * weights[token, slot, None]
        return final


class PassingOn(Block):
    """longcat_flash: numbers behind those of the experts stand for x itself."""

    some = 3

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, num_classes=COUNT).permute(2, 1, 0)
        hit = hits(mask)
        for number in hit:
            e = int(number.item())
            slot, token = torch.where(mask[e].squeeze(0))
            if token.numel() == 0:
                continue
            rows = x[token]
            if e >= self.some:
                out = rows
            else:
                gate, up = F.linear(rows, self.w1[e]).chunk(2, dim=-1)
                out = F.linear(F.silu(gate) * up, self.w2[e])
            out = out * weights[token, slot, None]
            final.index_add_(0, token, out.to(x.dtype))
        return final


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("form", [Skipping, Asking, Hit, HitItem, HitNumber, HitList, PassingOn])
def test_forms(form: type[Block], dtype: torch.dtype) -> None:
    """One site, no break; experts without tokens, one token, and no token at all included."""
    model = made(form, dtype)
    compiled = fuseline.compile(model, reuse=False)
    for shape in ((1, 7), (1, 1), (3, 4)):
        follows_numbers_rule(model, compiled, torch.randn(*shape, HIDDEN).to(dtype))
    report: Report = cast("Any", compiled).report()
    assert {s.status for s in report.sites if s.pattern == "moe"} == {"fused"}, report
    assert report.count("moe") == report.stats["graphs"]
    assert report.stats["graph breaks"] == 0
    follows_numbers_rule(model, compiled, torch.randn(1, 0, HIDDEN).to(dtype))


class Counting(Block):
    """How many experts had tokens is a number of Python's."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final, count = torch.zeros_like(x), 0
        mask = F.one_hot(selected, COUNT).permute(2, 1, 0)
        hit = hits(mask)
        for e in hit:
            slot, token = torch.where(mask[e[0]])
            final.index_add_(0, token, self.experts[int(e)](x[token]) * weights[token, slot, None])
            count += 1
        return final * count


class Noting(Block):
    """Which experts had tokens is noted in a tensor, and changes the result."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final, used = torch.zeros_like(x), torch.zeros(COUNT)
        mask = F.one_hot(selected, COUNT).permute(2, 1, 0)
        hit = hits(mask)
        for e in hit:
            slot, token = torch.where(mask[e[0]])
            used[e[0]] = 1
            final.index_add_(0, token, self.experts[int(e)](x[token]) * weights[token, slot, None])
        return final * used.sum()


class AtLeastTwo(Block):
    """An expert with one token is left out."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            if token.numel() < 2:
                continue
            final[token] += expert(x[token]) * weights[token, slot, None]
        return final


class HitTwice(Block):
    """As that, by the list of experts."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, COUNT).permute(2, 1, 0)
        for e in torch.greater(mask.sum(dim=(-1, -2)), 1).nonzero():
            slot, token = torch.where(mask[e[0]])
            final.index_add_(0, token, self.experts[int(e)](x[token]) * weights[token, slot, None])
        return final


class OfAnother(Block):
    """The experts that are hit are those of another choice than the one that rows are picked by."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, COUNT).permute(2, 1, 0)
        first = F.one_hot(selected[:1], COUNT).permute(2, 1, 0)
        hit = hits(first)
        for e in hit:
            slot, token = torch.where(mask[e[0]])
            final.index_add_(0, token, self.experts[int(e)](x[token]) * weights[token, slot, None])
        return final


class Noticing(nn.Module):
    """One expert that notices, in a tensor or in Python, that it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = list[int]()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))

    def counted(self, x: Tensor) -> Tensor:
        cast("Tensor", self.calls).add_(1)
        return self(x)

    def noted(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return self(x)


class Called(Block):
    """A buffer counts the calls of an expert."""

    method = "counted"

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Noticing() for _ in range(COUNT))

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e in range(COUNT):
            token, slot = torch.where(selected == e)
            if token.numel() == 0:
                continue
            out = getattr(self.experts[e], self.method)(x[token])
            final.index_add_(0, token, out * weights[token, slot, None])
        return final

    def seen(self) -> list[tuple[int, int]]:
        """What the experts have noticed."""
        experts = cast("list[Noticing]", list(self.experts))
        return [(int(cast("Tensor", e.calls)), len(e.seen)) for e in experts]


class Hidden(Called):
    """So does a list."""

    method = "noted"


class InPlace(Block):
    """An expert writes to the rows of another tensor."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final, last = torch.zeros_like(x), torch.zeros(HIDDEN)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            if token.numel() == 0:
                continue
            out = expert(last.mul_(0.5).add_(1) * x[token])
            final.index_add_(0, token, out * weights[token, slot, None])
        return final


class Doubled(Block):
    """A row of one number, times two, is another number, not two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.every = nn.Parameter(torch.randn(2 * COUNT, HIDDEN, HIDDEN) * 0.2)

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, COUNT).permute(2, 1, 0)
        hit = hits(mask)
        for e in hit:
            slot, token = torch.where(mask[e[0]])
            out = x[token] @ self.every[e * 2].squeeze(0)
            final.index_add_(0, token, out * weights[token, slot, None])
        return final


class AskingOthers(Block):
    """Whether a turn does something is up to the rows of another expert."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            other, _ = torch.where(selected == (e + 1) % COUNT)
            if other.numel() == 0:
                continue
            final.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
        return final


SEEN = [Counting, Noting, AtLeastTwo, HitTwice, OfAnother, InPlace, Doubled, AskingOthers]


@pytest.mark.parametrize("form", SEEN)
def test_no_turns_that_were_not_made(form: type[Block]) -> None:
    """A turn without tokens, or one that is left out, would be seen."""
    report = report_after(made(form), (1, 7), (1, 1))
    assert report.count("moe") == 0
    assert cast("int", report.stats["graph breaks"]) > 0


@pytest.mark.parametrize("form", [Called, Hidden])
def test_no_calls_that_were_not_made(form: type[Called]) -> None:
    """What an expert does outside of its result is done for experts that have tokens."""
    model, eager = made(form), cast("Called", made(form))
    compiled = fuseline.compile(model, reuse=False)
    x = torch.randn(1, 1, HIDDEN)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x))
    assert cast("Called", model).seen() == eager.seen()
    assert sum(map(sum, eager.seen())) == CHOSEN


class Chained(Block):
    """Experts that are sequences: a turn makes and uses up an iterator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(HIDDEN, INNER), nn.SiLU(), nn.Linear(INNER, HIDDEN))
            for _ in range(COUNT)
        )

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            if token.numel() == 0:
                continue
            final.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
        return final


class Layers(nn.Module):
    """Two blocks that run the same loop."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Hit(), Hit()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


@pytest.mark.parametrize(("form", "blocks"), [(Chained, 1), (Layers, 2)])
def test_turns_of_more_than_one_call(form: type[nn.Module], blocks: int) -> None:
    report = report_after(made(form), (1, 7), (1, 1))
    assert report.count("moe") == report.count("moe", None) == blocks * 2
    assert report.stats["graph breaks"] == 0
