"""Loops over experts in plain PyTorch, which pick the tokens of each by a mask, are one site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
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

SOURCE = Path(__file__).read_text().splitlines()


class OneHot(Block):
    """Modules, one-hot vectors and ``index_add_``."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, COUNT).permute(2, 1, 0)
        for e in range(COUNT):
            idx, token = torch.where(mask[e])
            out = self.experts[e](x[None, token].reshape(-1, HIDDEN)) * weights[token, idx, None]
            final.index_add_(0, token, out.to(x.dtype))
        return final


class InPlace(Block):
    """Modules with biases, and ``+=`` on the rows."""

    bias = True

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            final[token] += expert(x[token]) * weights[token, slot, None]
        return final


class Packed(Block):
    """Packed matrices with biases, and ``nonzero`` in two tensors."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = x.new_zeros(x.shape)
        for e in range(COUNT):
            token, slot = (selected == e).nonzero(as_tuple=True)
            gate, up = F.linear(x[token], self.w1[e], self.b1[e]).chunk(2, dim=-1)
            out = F.linear(F.silu(gate) * up, self.w2[e], self.b2[e])
            final = final.index_add(0, token, out * weights[token, slot].unsqueeze(-1))
        return final


class Apart(Block):
    """Gate and up packed in tensors of their own, each of which has a part for every turn."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e in range(COUNT):
            token, slot = torch.where(selected == e)
            hidden = F.silu(F.linear(x[token], self.gate[e])) * F.linear(x[token], self.up[e])
            out = F.linear(hidden, self.w2[e])
            final.index_add_(0, token, out * weights[token, slot, None])
        return final


class OneTensorEach(Block):
    """dbrx: the matrices of all experts in one tensor, viewed in each turn; down is ``[K, N]``."""

    def __init__(self) -> None:
        super().__init__()
        shape = (COUNT * INNER, HIDDEN)
        self.gates, self.ups, self.downs = (
            nn.Parameter(torch.randn(shape) * 0.2) for _ in range(3)
        )

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        mask = F.one_hot(selected, COUNT + 1).permute(2, 1, 0)
        shape = (-1, INNER, HIDDEN)
        for e in range(COUNT):
            slot, token = torch.where(mask[e])
            gate, up, down = (w.view(shape)[e] for w in (self.gates, self.ups, self.downs))
            hidden = F.silu(x[token].matmul(gate.t())) * x[token].matmul(up.t())
            final.index_add_(0, token, hidden.matmul(down) * weights[token, slot, None])
        return final


class Turned(Block):
    """Packed matrices that lie ``[K, N]``, and ``nonzero`` in one tensor."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros(x.shape[0], HIDDEN, dtype=x.dtype)
        for e in range(COUNT):
            hit = torch.nonzero(selected == e)
            token, slot = hit[:, 0], hit[:, 1]
            gate, up = (x[token] @ self.w1_t[e]).chunk(2, dim=-1)
            out = (F.silu(gate) * up) @ self.w2_t[e]
            final.index_put_((token,), out * weights[token, slot, None], accumulate=True)
        return final


class Boolean(Block):
    """A boolean mask over the tokens; the weights are summed over the slots."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = (selected == e).any(-1)
            weight = (weights * (selected == e)).sum(-1, keepdim=True)
            final[mask] += expert(x[mask]) * weight[mask]
        return final


class TwoMasks(Block):
    """A boolean mask over the tokens, and one over the slots."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = selected == e
            rows = mask.any(dim=-1)
            final[rows] = final[rows] + expert(x[rows]) * weights[mask][:, None]
        return final


class Column(Block):
    """The weights of all experts, and one column of them for each."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        every = torch.zeros(x.shape[0], COUNT, dtype=x.dtype).scatter(1, selected, weights) * 0.5
        for e, expert in enumerate(self.experts):
            token = torch.where((selected == e).any(-1))[0]
            final.index_add_(0, token, every[token, e, None] * expert(x[token]))
        return final


class Scattered(Block):
    """Added by ``scatter_add_``, and what goes into the experts is weighed."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            out = expert(x[token] * weights[token, slot, None])
            final.scatter_add_(0, token[:, None].expand(-1, HIDDEN), out)
        return final


class First(Block):
    """One expert for each token, whose rows are written."""

    chosen = 1

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final, only = torch.zeros_like(x), selected[:, 0]
        for e, expert in enumerate(self.experts):
            mask = only == e
            final[mask] = expert(x[mask]) * weights[mask]
        return final


class FirstColumn(Column):
    """One expert for each token, and weights of all."""

    chosen = 1


class Batches(Block):
    """Tokens in two dims."""

    def forward(self, x: Tensor) -> Tensor:
        weights, selected = F.softmax(self.router(x), -1).topk(CHOSEN, -1)
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            batch, token, slot = torch.where(selected == e)
            out = expert(x[batch, token]) * weights[batch, token, slot, None]
            final[batch, token] += out
        return final


class Wide(Block):
    """Weights in float32, whatever the model's type."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, HIDDEN)
        scores = F.softmax(self.router(rows), dim=-1, dtype=torch.float32)
        weights, selected = scores.topk(CHOSEN, -1)
        final = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)
            out = expert(rows[token]) * weights[token, slot, None]
            final.index_add_(0, token, out.to(rows.dtype))
        return final.view_as(x)


def slow(form: type[Block]) -> Any:
    return pytest.param(form, marks=pytest.mark.slow)


FORMS = [
    *(OneHot, InPlace, Packed, Apart, OneTensorEach, Boolean),
    *map(slow, (Turned, TwoMasks, Column, Scattered, First, FirstColumn, Batches, Wide)),
]


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: type[Block], dtype: torch.dtype) -> None:
    """One site, no break; experts without tokens, one token, and no token at all included."""
    model = made(form, dtype)
    compiled = fuseline.compile(model, reuse=False)
    for shape in ((1, 7), (1, 1), (3, 4), (1, 0)):
        follows_numbers_rule(model, compiled, torch.randn(*shape, HIDDEN).to(dtype))
    report: Report = cast("Any", compiled).report()
    assert report.stats["graph breaks"] == 0, report
    assert {s.status for s in report.sites if s.pattern == "moe"} == {"fused"}, report
    assert report.count("moe") == report.stats["graphs"]
    assert not [k for k in report.stats if k.startswith("plain")], report


class InOrder(Block):
    """The experts in another order than that of their numbers."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e in (0, 2, 1, 3, 4):
            token, slot = torch.where(selected == e)  # data decides
            final[token] += self.experts[e](x[token]) * weights[token, slot, None]
        return final


class Asking(Block):
    """A loop that asks in Python how many tokens an expert has."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(selected == e)  # data decides
            if token.numel() < 2:
                continue
            final[token] += expert(x[token]) * weights[token, slot, None]
        return final


class Listed(Block):
    """A loop over the experts that were chosen, as a list: Dynamo itself fails where it goes on."""

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        final = torch.zeros_like(x)
        for e in cast("Any", selected).unique().tolist():  # data decides
            token, slot = torch.where(selected == e)
            final[token] += self.experts[e](x[token]) * weights[token, slot, None]
        return final


untraced: Callable[[Tensor], object] = cast("Any", torch.compiler).disable(len)


class Counted(nn.Module):
    """A buffer that one graph writes before another is given up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = OneHot(), InOrder()
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        untraced(x)
        self.calls.add_(1)
        return self.second(self.first(x))


class Elsewhere(nn.Module):
    """Sizes of data where there are no experts."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.before(x.reshape(-1, HIDDEN))
        return self.after(rows[rows[:, 0] > -10])


LINES = {
    f"{Path(__file__).name}:{n}" for n, s in enumerate(SOURCE, 1) if s.endswith("# data decides")
}
ORDER = "as one graph: the experts are added in the order [0, 2, 1, 3, 4]"


@pytest.mark.parametrize(("form", "said"), [(InOrder, ORDER), (Asking, ""), (Listed, "")])
def test_loops_that_stay_loops(form: type[Block], said: str) -> None:
    """They run with breaks as ever, and are named; what is around them is compiled."""
    report = report_after(made(form), (1, 7), (1, 1))
    missed = [s for s in report.sites if s.pattern == "moe"]
    assert {s.status for s in missed} == {"missed"}
    assert {s.where for s in missed} <= LINES
    assert all(said in s.reason for s in missed)
    assert cast("int", report.stats["graph breaks"]) > 0
    assert report.count("gated_mlp") > 0
    assert not [k for k in report.stats if k.startswith("plain")]


def test_nothing_is_done_twice() -> None:
    """Where a later part of a call turns out to be no one graph, the parts before are not rerun."""
    model = made(Counted)
    compiled = fuseline.compile(model, reuse=False)
    with torch.no_grad():
        compiled(torch.randn(1, 7, HIDDEN))
    assert cast("Any", model).calls == 2


def test_sizes_of_data_elsewhere() -> None:
    report = report_after(made(Elsewhere), (1, 7), (3, 4))
    assert not report.count("moe", None)
    assert cast("int", report.stats["graph breaks"]) > 0
    assert not [k for k in report.stats if k.startswith("plain")]


def test_dynamic_sizes_are_one_graph() -> None:
    report = report_after(made(OneHot), (1, 7), (1, 12), (1, 2), dynamic=True)
    assert (report.stats["graphs"], report.count("moe")) == (1, 1)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks at it
def test_with_gradients_a_loop_breaks_as_ever() -> None:
    model = made(OneHot)
    compiled: Any = fuseline.compile(model, reuse=False)
    x = torch.randn(1, 7, HIDDEN)
    torch.testing.assert_close(compiled(x), model(x))
    report: Report = compiled.report()
    assert cast("int", report.stats["graph breaks"]) > 0


def test_a_setting_of_torch_is_what_it_was() -> None:
    """Both after a program that keeps to it and after one that gives it up; other users' too."""
    config = vars(torch)["_dynamo"].config
    for form in (OneHot, InOrder):
        report_after(made(form), (1, 7))
        assert config.capture_dynamic_output_shape_ops is False
    with config.patch(capture_dynamic_output_shape_ops=True):
        report = report_after(made(InOrder), (1, 7))
        assert config.capture_dynamic_output_shape_ops is True
    assert [k for k in report.stats if k.startswith("plain")]


@pytest.mark.parametrize("form", [OneHot, InOrder])
def test_as_a_backend(form: type[Block]) -> None:
    """There torch's setting is the user's: with it, loops are one op or plain ATen."""
    model = made(form)
    config = vars(torch)["_dynamo"].config
    x = torch.randn(1, 7, HIDDEN)
    for wanted in (False, True):
        torch.compiler.reset()
        with config.patch(capture_dynamic_output_shape_ops=wanted), torch.no_grad():
            compiled = cast("Any", torch.compile)(model, backend="fuseline")
            torch.testing.assert_close(compiled(x), model(x))


def test_a_second_process_needs_no_trace(tmp_path: Path) -> None:
    """Compiled forms of loops are kept as others are."""
    x = torch.randn(1, 7, HIDDEN)
    model = made(OneHot)
    with torch.no_grad():
        fuseline.compile(model, cache_dir=tmp_path)(x)
        torch.compiler.reset()
        again: Any = fuseline.compile(model, cache_dir=tmp_path)
        torch.testing.assert_close(again(x), model(x))
    report: Report = again.report()
    assert report.stats["graphs from the cache"] == 1
    assert report.count("moe") == 1
