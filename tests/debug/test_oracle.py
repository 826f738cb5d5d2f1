"""The float64 oracle widens what model code narrows, and measures errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fuseline.debug.oracle import oracle, relative_error


class CastingNorm(nn.Module):
    """A norm that computes in float32, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 33))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * (wide * scale).to(x.dtype)


def inputs() -> Tensor:
    return torch.randn(7, 33, generator=torch.Generator().manual_seed(1))


def test_inner_casts_are_widened() -> None:
    model, x = CastingNorm(), inputs()
    wide = x.double()
    exact = model.weight.double() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert relative_error(oracle(model, x), exact) < 1e-15
    # What model.double() gives instead, which is why the oracle exists:
    assert relative_error(CastingNorm().double()(wide), exact) > 1e-9


def test_numbers_without_a_type_are_wide() -> None:
    """The least number of a widened mask does not fit torch's default type."""

    def program(x: Tensor) -> Tensor:
        least = torch.full((), torch.finfo(x.dtype).min)
        return torch.where(x > 0, x, least)

    out = oracle(program, inputs())
    assert out.min() == torch.finfo(torch.float64).min


def test_numbers_with_the_type_of_a_tensor_keep_it() -> None:
    def program(x: Tensor) -> Tensor:
        whole = torch.full_like(x.argsort(), 0.5)  # is 0
        return x * whole + x.new_full((), 2.0)

    assert torch.equal(oracle(program, inputs()), torch.full((7, 33), 2.0, dtype=torch.float64))


def test_the_model_is_left_alone() -> None:
    model = CastingNorm()
    oracle(model, inputs())
    assert model.weight.dtype == torch.float32


def test_functions_dtype_arguments_and_new_tensors() -> None:
    def program(x: Tensor, *, bias: Tensor) -> dict[str, Tensor]:
        ones = torch.ones(33)
        total = torch.softmax(x.half(), -1, dtype=torch.float32) + ones + bias.bfloat16()
        return {"total": total, "top": total.argmax(-1)}

    x = inputs()
    out = oracle(program, x, bias=x[0])
    exact = torch.softmax(x.double(), -1) + 1 + x[0].double()
    assert out["total"].dtype == torch.float64
    assert out["top"].dtype == torch.int64
    assert relative_error(out["total"], exact) < 1e-15


def test_mutation_reaches_the_tensor_that_is_written() -> None:
    def program(x: Tensor) -> Tensor:
        cache = torch.zeros(7, 33, dtype=torch.bfloat16)
        cache.index_copy_(0, torch.tensor([4, 1]), x[:2])
        return cache

    x = inputs()
    out = oracle(program, x)
    assert torch.equal(out[4], x[0].double())
    assert torch.equal(out[1], x[1].double())
    assert out.count_nonzero() == 66


@dataclass
class Answer:
    logits: Tensor
    note: str
    extra: tuple[Tensor, ...]


def test_error_runs_over_all_tensors() -> None:
    one = torch.ones(3)
    ours = Answer(one * 1.5, "a", (one,))
    theirs = Answer(one, "b", (one,))
    assert relative_error(ours, theirs) == pytest.approx(math.sqrt(0.75 / 6))
    assert relative_error(ours, ours) == 0


def test_error_of_infinities_and_nans() -> None:
    inf, nan = math.inf, math.nan
    masked = torch.tensor([1.0, -inf, nan])
    assert relative_error(masked, masked.clone()) == 0
    assert relative_error(torch.tensor([1.0, -inf, 2.0]), masked) == inf
    assert relative_error(torch.tensor([nan, -inf, nan]), masked) == inf


def test_error_of_integers_is_all_or_nothing() -> None:
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    assert relative_error(torch.tensor([1, 3]), torch.tensor([1, 2])) == math.inf


def test_error_needs_the_same_shapes() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        relative_error(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="longer"):
        relative_error([torch.ones(2)], [torch.ones(2), torch.ones(2)])
