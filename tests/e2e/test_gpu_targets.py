"""Models compiled for GPUs on a machine without one: every site fused, every op with a kernel.

The kernels are built and not run; what the passes made of the model runs op by op.
"""

from __future__ import annotations

import copy

import pytest
import torch

import fuseline
from fuseline.debug.oracle import oracle
from tests.e2e.families import FAMILIES, Family, static_cache
from tests.e2e.harness import QUIET, assert_numbers_rule, generate, report_of
from tests.e2e.test_moe import FAMILIES as MIXTURES

pytestmark = [
    QUIET,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:FL1005:fuseline.errors.FuselineWarning"),
]

STEPS = 3
QUICK = "qwen3"
PLAIN = {f.model_type: f for f in FAMILIES}
MIXED: dict[str, Family] = {str(p.id): p.values[0] for p in MIXTURES}
MODELS = {
    **{name: PLAIN[name] for name in ("qwen3", "olmo2", "gemma3_text", "qwen3_moe")},
    **{name: MIXED[name] for name in ("deepseek_v3-groups", "minimax_m2", "gpt_oss")},
}


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == QUICK else pytest.mark.slow) for n in MODELS]
)
def test_every_site_is_fused_and_every_op_has_a_kernel(name: str, target: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    model = MODELS[name].build(torch.bfloat16)
    compiled = fuseline.compile(model, target=target)
    with torch.no_grad():
        eager = generate(model, static_cache(model), STEPS)
        wide = copy.deepcopy(model).double()
        exact = oracle(lambda: generate(wide, static_cache(wide), STEPS))
        found = generate(compiled, static_cache(model), STEPS)
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        assert_numbers_rule(ours, theirs, truth)
    report = report_of(compiled)
    assert report.sites
    assert not [s for s in report.sites if s.status == "missed"], report
    left = [(k.op, k.reason) for k in report.kernels if k.status == "reference"]
    assert not left
