"""Functions of rows as the benchmarks time them: one launch each on a GPU, the numbers on a CPU."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

import fuseline
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import ROWS
from fuseline.debug.oracle import oracle
from fuseline.report import Report
from tests.e2e.harness import assert_numbers_rule

QUIET = pytest.mark.filterwarnings("ignore:FL1005:fuseline.errors.FuselineWarning")


def compiled(name: str, tokens: int, target: str) -> Report:
    """What came of a function of rows at some number of tokens; its results are compared."""
    row = ROWS[name]
    inputs = row.inputs(Device("cpu", quick=True), tokens)[0]
    function = cast("Any", fuseline.compile(row.function, target=target, dynamic=False))
    with torch.no_grad():
        found, eager = function(*inputs), row.function(*inputs)
        exact = oracle(lambda: row.function(*(x.double() for x in inputs)))
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        assert_numbers_rule(ours, theirs, truth)
    return function.report()


@QUIET
@pytest.mark.parametrize("name", ROWS)
def test_one_launch_on_a_gpu(name: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    report = compiled(name, 3, "sm_90")
    assert [kernel.launches for kernel in report.kernels] == [1]
    assert not [site for site in report.sites if site.status == "missed"]


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_rows_before_latent_attention_without_it(tokens: int) -> None:
    """No attention shows that they are such: they are siblings all the same."""
    report = compiled("mla_prologue", tokens, "cpu")
    assert [site.pattern for site in report.sites] == ["merged_rows"]
    details = report.sites[0].details
    assert details["rows"] == "norm of 1536, norm of 512, rotation of 64"
    assert "rope" in details["swallowed"]
