"""Assignments by index become copies of slices where they replace whole ones."""

from __future__ import annotations

import pytest
import torch

from fuseline.passes.dce import Dce
from fuseline.passes.lower_index_put import LowerIndexPut
from fuseline.testing import assert_no_rewrite, assert_rewrites

ARGUMENTS = "%k: f32[2, 3, 16, 8], %at: i64[S], %x: f32[2, 3, S, 8]"


def body(*lines: str, arguments: str = ARGUMENTS) -> str:
    return "\n".join([f"func @f({arguments}) where S in 1..16 {{", *lines, "return %y", "}"])


@pytest.mark.parametrize("places", [[-1, 0, 5], [-16, 15, 3], [2, 2, -14]])
def test_places_may_count_from_the_end(places: list[int]) -> None:
    """Where a place occurs twice, the last counts."""
    assert_rewrites(
        LowerIndexPut(),
        body("%y = index_put %k, [%at], %x {axes = (2,)}"),
        body(
            "%zero = full {value = 0, dtype = i64}",
            "%behind = lt %at, %zero",
            "%size = full {value = 16, dtype = i64}",
            "%from_end = add %at, %size",
            "%place = where %behind, %from_end, %at",
            "%y = index_copy %k, %place, %x {axis = 2}",
        ),
        given={"at": torch.tensor(places)},
        sizes={"S": 3},
    )


def test_scatter_of_whole_slices() -> None:
    assert_rewrites(
        [LowerIndexPut(), Dce()],
        body(
            "%row = reshape %at {shape = (1, 1, S, 1)}",
            "%index = expand %row {shape = (2, 3, S, 8)}",
            "%y = scatter %k, %index, %x {axis = 2}",
        ),
        body(
            "%row = reshape %at {shape = (1, 1, S, 1)}",
            "%flat = reshape %row {shape = (S,)}",
            "%y = index_copy %k, %flat, %x {axis = 2}",
        ),
    )


@pytest.mark.parametrize(
    "line",
    [
        "%y = index_put %k, [%at], %x {axes = (2,), accumulate = true}",
        "%y = index_put %k, [%at, %at], %one {axes = (1, 2)}",
        "%y = scatter %k, %each, %x {axis = 2}",
    ],
)
def test_no_rewrite_of_what_replaces_no_slices(line: str) -> None:
    arguments = f"{ARGUMENTS}, %one: f32[], %each: i64[2, 3, S, 8]"
    assert_no_rewrite(LowerIndexPut(), body(line, arguments=arguments), None)
