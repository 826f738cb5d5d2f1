"""The table of what each kind of rewrite does to the numbers: one model, the file and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import numerics
from benchmarks.common import read_json
from tests.e2e.harness import QUIET

pytestmark = QUIET


def test_the_page_is_what_the_results_say() -> None:
    """After another text or other results: ``python -m benchmarks.numerics --page``."""
    assert numerics.PAGE.read_text() == numerics.page(read_json(numerics.DEFAULT))


def test_no_rewrite_breaks_the_rule_and_every_family_was_tried() -> None:
    models = read_json(numerics.DEFAULT)["models"]
    broken = {name: found["failures"] for name, found in models.items() if found["failures"]}
    assert not broken
    for name, found in models.items():
        compared = found["kinds"].get("kernels", {}).get("compared")
        assert compared or name.startswith("latent_cache "), "it keeps state from call to call"


@pytest.mark.slow
def test_one_model_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "numerics.json"
    assert numerics.main(["--only", "llama", "--dtype", "float32", "--output", str(path)]) == 0
    results = read_json(path)
    (found,) = results["models"].values()
    assert found["failures"] == []
    assert found["kinds"]["merge-linears"]["worst"]["share"] <= 1
    assert found["kinds"]["kernels"]["compared"] == 2
    assert "| merge-linears | " in numerics.page(results)
