"""A model with five places that look like what is fused, each spoilt in its own way.

What is said of each is true: where just the predicate that failed is made to hold, it is fused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

import fuseline
from examples.misses import FAULTS, make_model
from fuseline.cli import main
from fuseline.report import Report

REASONS = {
    "qk_norm": "rms_norm of q has eps 1e-06, of k 1e-05",
    "rope": "the signs of the four products are (1, -1, 1, -1): not a rotation",
    "gated_mlp": "the result of silu has readers outside the MLP: amax",
    "merged_linear": (
        "weight pair.left.weight of f32 with no bias has no sibling like it; "
        "weight pair.right.weight is read 2 times"
    ),
    "add_rms_norm": "the add joins f32[2, 7, 48] and f32[48], not two of one type",
}
PLACES = {
    "qk_norm": "attention",
    "rope": "turn",
    "gated_mlp": "mlp",
    "merged_linear": "pair.left",
    "add_rms_norm": "norm.norm",
}
PAGE = " ".join((Path(__file__).parents[2] / "docs" / "remarks.md").read_text().split())


def misses(report: Report) -> dict[str, str]:
    return {s.pattern: s.reason for s in report.sites if s.status == "missed"}


def test_explain_gives_five_reasons(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In its answer, in its remarks, in the file of these and in the docs: the same, at the same
    places.
    """
    file = tmp_path / "remarks.yaml"
    words = ["explain", "examples.misses:make_model", "--missed", "--json", "--remarks-missed"]
    assert main([*words, "--remarks-output", str(file)]) == 0
    done = capsys.readouterr()
    sites: Any = json.loads(done.out)["sites"]
    assert {s["pattern"]: s["reason"] for s in sites} == REASONS
    assert {s["pattern"]: s["where"].split(" ")[0] for s in sites} == PLACES
    lines = [line for line in done.err.splitlines() if ": remark: missed " in line]
    for pattern, reason in REASONS.items():
        (line,) = [line for line in lines if f"missed {pattern} at {PLACES[pattern]}: " in line]
        assert f": {reason}; " in line
        assert line.startswith("misses.py:")
        assert line in PAGE
    assert _of_file(file) == REASONS


def _of_file(file: Path) -> dict[str, str]:
    class Loader(yaml.SafeLoader):
        pass

    def record(loader: Any, kind: str, node: Any) -> tuple[str, Any]:
        return kind, loader.construct_mapping(node, deep=True)

    cast("Any", Loader).add_multi_constructor("!", record)
    documents = cast("Any", yaml).load_all(file.read_text(), Loader)
    missed = [found for kind, found in documents if kind == "Missed"]
    return {found["Name"]: _only(found["Args"], "Reason") for found in missed}


def _only(args: list[dict[str, str]], key: str) -> str:
    (text,) = [arg[key] for arg in args if key in arg]
    return text


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reason_is_true(fault: str) -> None:
    """With just that predicate made to hold the place is fused; the other four are as they were."""
    model, inputs = make_model((fault,))
    report = fuseline.explain(model, *inputs)
    assert misses(report) == {name: text for name, text in REASONS.items() if name != fault}
    fused = [s for s in report.sites if (s.pattern, s.status) == (fault, "fused")]
    assert PLACES[fault] in [s.where.split(" ")[0] for s in fused]


def test_all_of_them_can_be_mended_and_required() -> None:
    model, inputs = make_model(FAULTS)
    report = fuseline.explain(model, *inputs, config=fuseline.Config(require=FAULTS))
    assert not misses(report)
