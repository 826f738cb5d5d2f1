"""Branches of a plan: what its launches do with streams, and the same results from recordings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuseline.build import Tools
from fuseline.runtime.kernels import HostKernels
from fuseline.runtime.lanes import ASIDE, CLOSE, FORK, JOIN, Lane
from fuseline.runtime.plan import NativeStep, Plan
from tests.runtime.graphs.conftest import graphed

SUMS = """func @f(%x: f32[S, 8], %y: f32[S, 8]) {
  %a = sum %x {axes = (1,)}
  %b = sum %y {axes = (1,)}
  %c = add %a, %b
  return %c
}"""
"""Two branches, and what needs both."""

BROKEN = """func @f(%x: f32[S, 8]) {
  %a = add %x, %x
  %s, %i = aten.call [%a] {
    target = "aten.sort.default", args = ($0,), kwargs = (), types = (f32[S, 8], i64[S, 8])
  }
  %y = mul %s, %s
  return %y
}"""
"""A step of torch's behind a branch."""


def in_lanes(*lanes: Lane) -> Any:
    """Put the native steps of a plan into lanes."""

    def change(plan: Plan) -> Plan:
        each = iter(lanes)
        steps = [
            replace(s, lane=next(each)) if isinstance(s, NativeStep) else s for s in plan.steps
        ]
        return replace(plan, steps=tuple(steps))

    return change


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What launches are told to do with streams."""
    found: list[int] = []
    call = HostKernels.call

    def noting(self: HostKernels, *given: Any) -> Any:
        found.append(given[3])
        return call(self, *given)

    monkeypatch.setattr(HostKernels, "call", noting)
    return found


def test_a_branch_forks_and_joins_in_the_order_of_the_plan(tools: Tools, seen: list[int]) -> None:
    program, _, run = graphed(tools, SUMS, change=in_lanes("aside", "beside", "main"))
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    (want,) = program([x, y])
    assert seen == [FORK | ASIDE, 0, JOIN]
    for _ in range(3):
        assert torch.equal(run([x.clone(), y.clone()])[0], want)
    assert run.recorded == 1


def test_steps_that_do_not_apply_leave_no_branch_open(tools: Tools, seen: list[int]) -> None:
    def change(plan: Plan) -> Plan:
        first, *rest = in_lanes("aside", "beside", "main")(plan).steps
        few = replace(first, when=("S", 0, 3))
        many = replace(first, when=("S", 4, None), lane="main")
        return replace(plan, steps=(few, many, *rest))

    program, *_ = graphed(tools, SUMS, change=change)
    program([torch.randn(3, 8), torch.randn(3, 8)])
    program([torch.randn(4, 8), torch.randn(4, 8)])
    assert seen == [FORK | ASIDE, 0, JOIN, 0, 0, 0]


def test_streams_meet_before_a_step_of_torch(tools: Tools, seen: list[int]) -> None:
    program, _, run = graphed(
        tools, BROKEN, refuse=["aten.sort.default"], change=in_lanes("aside", "main")
    )
    x = torch.randn(4, 8)
    (want,) = program([x])
    assert seen == [FORK | ASIDE | CLOSE, 0]
    for _ in range(3):
        assert torch.equal(run([x.clone()])[0], want)
