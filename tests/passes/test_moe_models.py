"""Mixtures of experts of whole models: one site a block, and the same bits after each pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from fuseline.ir.core import Func
from fuseline.ir.ops.experts import Moe, Route
from fuseline.passes.fuse_moe import FuseMoe
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.passes.raise_route import RaiseRoute
from fuseline.passes.record import Run
from fuseline.passes.rewrite import Pass
from fuseline.report import PassRecord
from fuseline.testing import assert_same_values
from tests.passes.test_raise_experts_models import DTYPES, captured

# transformers asks its version through a cached function while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")

SIGMOID = "sigmoid, corrected, divided by their sum"
BLOCKS = {  # the router, and the shared branch
    "qwen3_moe": ("top 2 of 5, softmax, in f32", None),
    "mixtral": ("top 2 of 5, softmax, divided by their sum, in f32", None),
    "qwen2_moe": ("top 2 of 5, softmax, in f32", "silu MLP of 56, gated"),
    "deepseek_v2": ("top 2 of 6, softmax, in f32", "silu MLP of 40"),
    "deepseek_v3": (
        f"top 2 of 6, in 1 of 2 groups, {SIGMOID}, times 2.5, in f32",
        "silu MLP of 40",
    ),
    "minimax_m2": (f"top 2 of 5, {SIGMOID}, in f32", None),
    "glm4_moe": (f"top 2 of 6, in 1 of 2 groups, {SIGMOID}, in f32", "silu MLP of 40"),
    "gpt_oss": ("top 2 of 5, softmax of the chosen, in {}", None),
    "granitemoeshared": ("top 2 of 5, softmax of the chosen, in f32", "silu MLP of 56"),
    "llama4_text": ("top 2 of 5, sigmoid of the chosen, in f32", "silu MLP of 40"),
    "nemotron_h": (
        f"top 2 of 6, {SIGMOID}, in f32",
        "relu2 MLP of 56 on the x before the projection, the result added behind the one back",
    ),
}
WIDE = ("deepseek_v2", "deepseek_v3", "glm4_moe", "nemotron_h")  # logits in float32


@dataclass
class SameValues:
    """Holds the two passes to the bit: told of every pass."""

    before: Func | None = None
    held: list[str] = field(default_factory=list[str])

    def before_pass(self, func: Func, pass_: Pass) -> None:
        self.before = func.clone() if isinstance(pass_, (RaiseRoute, FuseMoe)) else None

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        del run
        if self.before is not None and record.changed:
            assert_same_values(self.before, func)
            self.held.append(pass_.name)


def check(name: str, dtype: str, *, step: bool) -> None:
    func = captured(name, DTYPES[dtype], "grouped_mm", step)
    observer = SameValues()
    passes = default_pipeline()
    run = PassManager(passes, check=True, observers=[observer]).run(func)
    assert observer.held == [RaiseRoute.name, FuseMoe.name]
    assert [type(op) for op in func if isinstance(op, (Route, Moe))] == [Route, Moe]
    (site,) = [s for s in run.sites() if s.pattern in ("moe", "route")]
    assert (site.pattern, site.status) == ("moe", "fused")
    router, shared = BLOCKS[name]
    assert site.details["router"] == router.format(dtype)
    assert site.details.get("shared") == shared
    assert "weights" not in site.details
    assert ("latent" in site.details) == (name == "nemotron_h")
    wide = dtype == "bf16" and name in WIDE
    assert any(op.name == "wide_linear" for op in func) == wide


def test_one_model() -> None:
    check("deepseek_v3", "bf16", step=False)


@pytest.mark.slow
@pytest.mark.parametrize("step", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_every_model(name: str, dtype: str, step: bool) -> None:
    check(name, dtype, step=step)
