"""The models of the families that fuseline is held to, from a file: eager's numbers at any shape.

Each is exported for a CPU and for a GPU at once, with a batch and a length that vary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fuseline.artifact.archive import Archive
from fuseline.artifact.check_program import read_program
from fuseline.artifact.load import Loaded, load
from fuseline.debug.oracle import oracle
from fuseline.exporting import export
from tests.e2e import test_mla, test_moe
from tests.e2e.families import FAMILIES, Family, tokens
from tests.e2e.harness import QUIET, assert_numbers_rule

pytestmark = QUIET

MORE = (
    Family("qwen2"),
    Family("phi3", {"intermediate_size": 120}),
    Family("gemma2", {"head_dim": 20, "sliding_window": 8}),
)
MIXTURES = [cast("Family", each.values[0]) for each in test_moe.FAMILIES]
EXAMPLE = (2, 7)
SHAPES = ((1, 1), (3, 13), (1, 29))
"""Other than the example's; windows have 8 tokens, chunks 16."""


def cases() -> list[Any]:
    """Every family by a name of its own."""
    found: dict[str, Family] = {}
    for family in (*FAMILIES, *MORE, *test_mla.MODELS, *MIXTURES):
        count = sum(name.split(":")[0] == family.model_type for name in found)
        found[f"{family.model_type}:{count}" if count else family.model_type] = family
    return [pytest.param(family, id=name, marks=pytest.mark.slow) for name, family in found.items()]


def assert_complete(loaded: Loaded) -> None:
    """Both targets have the program, over the same inputs, and the loader takes what it says."""
    archive = Archive.open(loaded.path)
    targets = {target.name: target for target in loaded.manifest.targets}
    assert list(targets) == ["cpu", "sm_90"]
    files = {
        name: read_program(archive, loaded.manifest, target, "main")
        for name, target in targets.items()
    }
    assert files["cpu"].takes == files["sm_90"].takes
    assert files["cpu"].plan.symbols == files["sm_90"].plan.symbols
    assert {s.pattern for s in files["sm_90"].sites if s.status == "fused"}
    missing = set(files["sm_90"].plan.kernels) - set(targets["sm_90"].kernels)
    assert not missing


@pytest.mark.parametrize("dtype", [torch.float32], ids=["f32"])
@pytest.mark.parametrize("family", cases())
def test_forward_at_other_shapes(tmp_path: Path, family: Family, dtype: torch.dtype) -> None:
    model: Any = family.build(dtype)
    if hasattr(model.config, "n_routed_experts"):
        model.set_experts_implementation("batched_mm")
    model.config.use_cache = False
    batch = torch.export.Dim("batch", min=1, max=8)
    length = torch.export.Dim("length", min=1, max=48)
    made = export(
        model,
        (tokens(*EXAMPLE),),
        path=tmp_path / "model.fuse",
        targets=["cpu", "sm_90"],
        dynamic_shapes=({0: batch, 1: length},),
    )
    loaded = load(made.path, target="cpu", threads=1)
    assert_complete(loaded)
    for shape in SHAPES:
        ids = tokens(*shape, seed=sum(shape))
        with torch.no_grad():
            eager = model(ids).logits
        exact = oracle(model, ids).logits
        assert_numbers_rule(loaded(ids).logits, eager, exact)
