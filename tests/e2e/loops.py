"""Mixtures in plain PyTorch whose experts run in a loop, and what is asked of them compiled."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from fuseline.debug.oracle import oracle, relative_error
from fuseline.report import Report

COUNT, CHOSEN, HIDDEN, INNER = 5, 2, 24, 20


class Mlp(nn.Module):
    """One expert as a module."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, INNER, bias=bias)
        self.up = nn.Linear(HIDDEN, INNER, bias=bias)
        self.down = nn.Linear(INNER, HIDDEN, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A router and its experts, as packed matrices or as modules."""

    chosen = CHOSEN
    bias = False

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, COUNT, bias=False)
        self.experts = nn.ModuleList(Mlp(self.bias) for _ in range(COUNT))
        self.w1 = nn.Parameter(torch.randn(COUNT, 2 * INNER, HIDDEN) * 0.2)
        self.b1 = nn.Parameter(torch.randn(COUNT, 2 * INNER) * 0.2)
        self.gate = nn.Parameter(torch.randn(COUNT, INNER, HIDDEN) * 0.2)
        self.up = nn.Parameter(torch.randn(COUNT, INNER, HIDDEN) * 0.2)
        self.w2 = nn.Parameter(torch.randn(COUNT, HIDDEN, INNER) * 0.2)
        self.b2 = nn.Parameter(torch.randn(COUNT, HIDDEN) * 0.2)
        self.w1_t = nn.Parameter(torch.randn(COUNT, HIDDEN, 2 * INNER) * 0.2)
        self.w2_t = nn.Parameter(torch.randn(COUNT, INNER, HIDDEN) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, HIDDEN)
        scores = F.softmax(self.router(rows), dim=-1, dtype=torch.float32)
        weights, selected = scores.topk(self.chosen, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        return self.combine(rows, weights.to(x.dtype), selected).view_as(x)

    def combine(self, x: Tensor, weights: Tensor, selected: Tensor) -> Tensor:
        raise NotImplementedError


def made(form: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A block with seeded weights."""
    cast("Any", torch).manual_seed(0)
    torch.compiler.reset()
    return form().to(dtype)


def follows_numbers_rule(model: Any, compiled: Any, x: Tensor) -> None:
    with torch.no_grad():
        truth = oracle(copy.deepcopy(model), x)
        eager, ours = relative_error(model(x), truth), relative_error(compiled(x), truth)
    assert ours <= 1.5 * eager + torch.finfo(x.dtype).eps, (ours, eager, x.shape)


def report_after(model: nn.Module, *shapes: tuple[int, ...], **options: Any) -> Report:
    """The report of a compiled model, after calls whose results are eager's."""
    compiled = fuseline.compile(model, reuse=False, **options)
    for shape in shapes:
        follows_numbers_rule(model, compiled, torch.randn(*shape, HIDDEN))
    return cast("Any", compiled).report()
