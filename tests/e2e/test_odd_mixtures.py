"""Mixtures of experts that are not as they usually are: eager's numbers, and every site explained.

One expert, all of them, no token, equal and non-finite scores, numbers of experts that come from
outside, and modules that are shared, hooked or quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from fuseline.report import Site

HIDDEN, INNER = 24, 20


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    cast("Any", torch).manual_seed(0)
    with torch.no_grad():
        yield


def random(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)


class Packed(nn.Module):
    """Matrices in one tensor, gathered for each token's experts, and a shared branch."""

    def __init__(self, count: int, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = random(count, HIDDEN)
        self.up, self.down = random(count, 2 * INNER, HIDDEN), random(count, HIDDEN, INNER)
        self.shared_up, self.shared_down = random(INNER, HIDDEN), random(HIDDEN, INNER)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.softmax(F.linear(x, self.router).float(), -1)
        weights, chosen = scores.topk(self.chosen, -1)
        routed = self.experts(x, weights.to(x.dtype), chosen)
        return routed + F.linear(F.silu(F.linear(x, self.shared_up)), self.shared_down)

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        gate, up = torch.einsum("th,tkih->tki", x, self.up[chosen]).chunk(2, -1)
        outer = torch.einsum("tki,tkhi->tkh", F.silu(gate) * up, self.down[chosen])
        return (outer * weights[..., None]).sum(1)


class Chosen(nn.Module):
    """Somebody else says which experts."""

    def __init__(self, count: int, chosen: int) -> None:
        super().__init__()
        self.mixture = Packed(count, chosen)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        return self.mixture.experts(x, torch.ones_like(chosen, dtype=x.dtype), chosen)


class Expert(nn.Module):
    """A gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down: nn.Module = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Quantised(nn.Module):
    """Whole numbers and a factor in the place of a weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.abs().max()) / 127
        self.weight: Tensor
        self.register_buffer("weight", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale)


class Modules(nn.Module):
    """Every token goes through every expert, and the weights of those not chosen are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, 4, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        values, chosen = torch.softmax(self.router(x), -1).topk(2, -1)
        weights = torch.zeros(len(x), 4).scatter(-1, chosen, values)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + weights[:, e, None] * expert(x)
        return out


def compared(model: nn.Module, *inputs: Tensor, dynamic: bool | None = None) -> list[Site]:
    """The sites of experts of a model, after its numbers were compared."""
    compiled: Any = fuseline.compile(model, verify=True, dynamic=dynamic)
    torch.testing.assert_close(
        compiled(*inputs), model(*inputs), atol=1e-5, rtol=1.3e-6, equal_nan=True
    )
    sites = [s for s in compiled.report().sites if s.pattern == "moe"]
    assert sites, "experts were found"
    assert all(site.reason for site in sites if site.status == "missed")
    return sites


@pytest.mark.parametrize("tokens", [0, pytest.param(1, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, 1), (4, 4), *(pytest.param(5, k, marks=pytest.mark.slow) for k in (1, 2))],
)
def test_any_number_of_experts_and_tokens(count: int, chosen: int, tokens: int) -> None:
    model = Packed(count, chosen)
    (site,) = compared(model, torch.randn(tokens, HIDDEN), dynamic=False)
    assert site.status == "fused"


def test_equal_scores_go_where_torch_sends_them() -> None:
    model = Packed(6, 3)
    model.router.zero_()
    (site,) = compared(model, torch.randn(5, HIDDEN))
    assert site.status == "fused"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers(value: float) -> None:
    """One row of x is spoilt, and its token alone."""
    x = torch.randn(5, HIDDEN)
    x[2, 3] = value
    (site,) = compared(Packed(6, 3), x)
    assert site.status == "fused"


def test_experts_chosen_outside_may_be_counted_from_the_end() -> None:
    """torch takes -1 for the last one: no kernel of experts does."""
    chosen = torch.tensor([[0, -1], [3, 1], [-4, 2]])
    (site,) = compared(Chosen(4, 2), torch.randn(3, HIDDEN), chosen)
    assert site.status == "missed"
    assert "may lie outside" in site.reason


def test_an_expert_that_there_is_not_is_an_error() -> None:
    compiled: Any = fuseline.compile(Chosen(4, 2))
    with pytest.raises(IndexError, match="out of bounds|out of range"):
        compiled(torch.randn(1, HIDDEN), torch.tensor([[0, 4]]))


def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    del module, args
    return output * 2


def shared(model: Modules) -> None:
    model.experts[2] = model.experts[0]


def tied(model: Modules) -> None:
    cast("Any", model.experts[1]).down.weight = cast("Any", model.experts[3]).down.weight


def hooked(model: Modules) -> None:
    cast("Any", model.experts[1]).down.register_forward_hook(double)


def hooked_within(model: Modules) -> None:
    cast("Any", model.experts[1]).up.register_forward_hook(double)


def quantised(model: Modules) -> None:
    for expert in model.experts:
        cast("Any", expert).down = Quantised(cast("Any", expert).down)


def one_quantised(model: Modules) -> None:
    expert = cast("Any", model.experts[3])
    expert.down = Quantised(expert.down)


CHANGES = [shared, tied, hooked, hooked_within, quantised, one_quantised]


@pytest.mark.parametrize("change", CHANGES)
def test_modules_that_are_not_like_one_another(change: Callable[[Modules], None]) -> None:
    model = Modules()
    change(model)
    for tokens in (7, 1):
        (site,) = compared(model, torch.randn(tokens, HIDDEN), dynamic=False)
        assert site.status == "missed", "what makes them unlike is the reason"
