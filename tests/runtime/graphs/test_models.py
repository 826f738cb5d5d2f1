"""Models run from the recorder for the CPU: sizes that share recordings, against eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseline
from fuseline.runtime.graphs import Graphed
from tests.e2e.families import FAMILIES, Family, tokens
from tests.e2e.harness import QUIET, logits

pytestmark = QUIET

MODELS = [f for f in FAMILIES if f.model_type in ("qwen3", "qwen3_moe", "deepseek_v3")]


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS, ids=lambda f: f.model_type)
def test_prompts_of_any_batch_and_length(family: Family, recorded: list[Graphed]) -> None:
    model = family.build(torch.float32)
    compiled = fuseline.compile(model, dynamic=True, reuse=False)
    with torch.no_grad():
        for shape in ((2, 7), (3, 5), (4, 6), (3, 8), (2, 9), (2, 13), (4, 16), (3, 6)):
            ids = tokens(*shape, seed=sum(shape))
            found = logits(compiled(ids, use_cache=False))
            want = logits(model(ids, use_cache=False))
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    run = recorded[0]
    assert not run.program.plan.unpadded
    assert [tuple(r.sizes.values()) for r in run.sizes] == [(2, 16), (4, 8)]
    assert [r.kind for r in run.sizes] == ["bucket", "bucket"]


class Counts(nn.Module):
    """Keeps how many rows it has seen."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.shape[0])
        return torch.relu(x) * 2


def beside(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(x) * 2 + y


def behind_a_pole(q: Tensor, k: Tensor) -> Tensor:
    """Values that are infinite in the 14th row."""
    position = torch.arange(q.shape[2], dtype=torch.float32)
    v = k * (1.0 / (13.0 - position))[None, None, :, None]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[int], Sequence[Tensor]]]] = {
    "rows": (beside, lambda n: (torch.randn(n, 8), torch.randn(n, 8))),
    "rows turned, or all the same": (
        beside,
        lambda n: (torch.randn(8, n).t(), torch.randn(n, 1).expand(n, 8)),
    ),
    "a view by a size of its own": (
        beside,
        lambda n: (torch.randn(4, 8), torch.randn(4, n, 9)[:, 0, :8]),
    ),
    "a view by the size of another": (
        beside,
        lambda n: (torch.randn(n, 8), torch.randn(8, n)[:, 0]),
    ),
    "values behind a pole": (
        behind_a_pole,
        lambda n: (torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 8)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_calls_of_any_size_are_eager_s(name: str, recorded: list[Graphed]) -> None:
    function, inputs = CASES[name]
    compiled = fuseline.compile(function, dynamic=True, reuse=False)
    with torch.no_grad():
        for n in (13, 12, 11, 11, 10, 9, 12):
            given = inputs(n)
            want = function(*(t.clone() if t.is_contiguous() else t for t in given))
            torch.testing.assert_close(compiled(*given), want)
    assert any(r.replays for run in recorded for r in run.sizes)


def test_a_count_of_rows_is_that_of_the_call(recorded: list[Graphed]) -> None:
    model, plain = Counts(), Counts()
    compiled = fuseline.compile(model, dynamic=True, reuse=False)
    with torch.no_grad():
        for n in (13, 14, 11, 13, 10, 13):
            x = torch.randn(n, 8)
            torch.testing.assert_close(compiled(x), plain(x))
            assert model.seen == plain.seen
    assert any(r.replays for run in recorded for r in run.sizes)
