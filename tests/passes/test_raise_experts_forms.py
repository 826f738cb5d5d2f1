"""Experts as people write them in plain PyTorch, captured and raised."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseline.debug.oracle import relative_error
from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.experts import Experts
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.raise_experts import RaiseExperts
from fuseline.testing import make_arguments, make_binding, run_passes
from tests.frontend.helpers import record

COUNT, CHOSEN, HIDDEN, INNER = 5, 2, 24, 20


class Mlp(nn.Module):
    """One expert as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, INNER)
        self.up = nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A router and its experts, as packed matrices or as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, COUNT, bias=False)
        self.w1 = nn.Parameter(torch.randn(COUNT, INNER, HIDDEN) * 0.2)
        self.w3 = nn.Parameter(torch.randn(COUNT, INNER, HIDDEN) * 0.2)
        self.w2 = nn.Parameter(torch.randn(COUNT, HIDDEN, INNER) * 0.2)
        self.gate_up = nn.Parameter(torch.randn(COUNT, 2 * INNER, HIDDEN) * 0.2)
        self.gate_up_t = nn.Parameter(torch.randn(COUNT, HIDDEN, 2 * INNER) * 0.2)
        self.w2_t = nn.Parameter(torch.randn(COUNT, INNER, HIDDEN) * 0.2)
        self.experts = nn.ModuleList(Mlp() for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = F.softmax(self.router(x), -1).topk(CHOSEN, -1)
        return self.combine(x, weights / weights.sum(-1, keepdim=True), indices)

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        raise NotImplementedError

    def scattered(self, weights: Tensor, indices: Tensor) -> Tensor:
        zeros = torch.zeros(*indices.shape[:-1], COUNT, dtype=weights.dtype)
        return zeros.scatter(-1, indices, weights)


class Gathered(Block):
    """The matrices of each token's experts, by einsum."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        gate = F.silu(torch.einsum("th,tkih->tki", x, self.w1[indices]))
        inner = gate * torch.einsum("th,tkih->tki", x, self.w3[indices])
        outer = torch.einsum("tki,tkhi->tkh", inner, self.w2[indices])
        return (outer * weights[..., None]).sum(1)


class Einsum(Block):
    """All experts at once, by einsum."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        gate = F.silu(torch.einsum("th,eih->tei", x, self.w1))
        inner = gate * torch.einsum("th,eih->tei", x, self.w3)
        outer = torch.einsum("tei,ehi->teh", inner, self.w2)
        return (outer * self.scattered(weights, indices)[..., None]).sum(1)


class Contracted(Block):
    """By einsum from end to end: the weights are one side of the last product."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        gate, up = torch.einsum("th,eih->eti", x, self.gate_up).chunk(2, dim=-1)
        outer = torch.einsum("eti,ehi->eth", F.silu(gate) * up, self.w2)
        return torch.einsum("te,eth->th", self.scattered(weights, indices), outer)


class Turned(Contracted):
    """The same with matrices that are used as they lie, and the weights as the other side."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        gate, up = torch.einsum("th,ehi->tei", x, self.gate_up_t).chunk(2, dim=-1)
        outer = torch.einsum("tei,eih->teh", F.silu(gate) * up, self.w2_t)
        every = self.scattered(weights, indices)
        return torch.bmm(outer.mT, every[..., None]).squeeze(-1)


class Batched(Block):
    """All experts at once, by a batched product."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        outer = (F.silu(x @ self.w1.mT) * (x @ self.w3.mT)) @ self.w2.mT
        return (outer * self.scattered(weights, indices).T[..., None]).sum(0)


class Columns(Block):
    """A loop over modules that takes one column of the weights each."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        every, out = self.scattered(weights, indices), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + every[..., e, None] * expert(x)
        return out


class Compared(Block):
    """A loop over modules that asks for each who chose it."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out += (weights * (indices == e)).sum(-1, keepdim=True) * expert(x)
        return out


class OneHot(Block):
    """A loop over modules and one-hot vectors."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        every = (F.one_hot(indices, COUNT) * weights[..., None]).sum(-2)
        total = every[..., 0, None] * self.experts[0](x)
        for e in range(1, COUNT):
            total = every[..., e, None] * self.experts[e](x) + total
        return total


FORMS = [
    Columns,
    Contracted,
    *(pytest.param(c, marks=pytest.mark.slow) for c in (Turned,)),
    *(pytest.param(c, marks=pytest.mark.slow) for c in (Gathered, Einsum, Batched)),
    *(pytest.param(c, marks=pytest.mark.slow) for c in (Compared, OneHot)),
]


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4)])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: type[Block], shape: tuple[int, ...]) -> None:
    """One op, whose matrices are the parameters themselves."""
    cast("Any", torch).manual_seed(0)
    if len(shape) > 1 and issubclass(form, (Gathered, Einsum, Batched, Contracted)):
        pytest.skip("written for rows of tokens")
    compiled, recording = record(form())
    with torch.no_grad():
        compiled(torch.randn(*shape, HIDDEN))
    (func,) = recording.funcs
    passes = default_pipeline()
    at = next(i for i, p in enumerate(passes) if isinstance(p, RaiseExperts))
    run_passes(passes[:at], func)
    before = func.clone()
    run = run_passes(passes[at : at + 1], func)
    (op,) = [op for op in func if isinstance(op, Experts)]
    assert all(v.owner is None for v in (*op.up, *op.down))
    assert [site.status for site in run.sites() if site.pattern == "moe"] == ["fused"]
    arguments = make_arguments(before, make_binding(before))
    (want,), (got,) = evaluate(before, arguments), evaluate(func, arguments)
    assert relative_error(got, want) < 8 * torch.finfo(torch.float32).eps


class Crossed(Block):
    """As many tokens as experts, which take one another's place in the second product."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        inner = F.silu(torch.einsum("th,eih->tei", x, self.w1))
        outer = torch.bmm(inner, self.w2_t)
        return (outer * self.scattered(weights, indices).T[..., None]).sum(0)


class Transposed(Block):
    """The same by a transpose between batched products."""

    def combine(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        inner = F.silu(torch.bmm(x.expand(COUNT, -1, -1), self.w1.mT)).transpose(0, 1)
        outer = torch.bmm(inner, self.w2_t)
        return (outer * self.scattered(weights, indices).T[..., None]).sum(0)


@pytest.mark.parametrize("form", [Crossed, Transposed])
def test_no_experts_where_tokens_take_their_place(form: type[Block]) -> None:
    """Only the order of the dims tells one from the other."""
    cast("Any", torch).manual_seed(0)
    compiled, recording = record(form())
    with torch.no_grad():
        compiled(torch.randn(COUNT, HIDDEN))
    (func,) = recording.funcs
    passes = default_pipeline()
    at = next(i for i, p in enumerate(passes) if isinstance(p, RaiseExperts))
    run = run_passes(passes[: at + 1], func)
    assert not any(isinstance(op, Experts) for op in func)
    reasons = [site.reason for site in run.sites() if site.pattern == "moe"]
    assert any("experts and tokens in another order" in reason for reason in reasons), reasons
