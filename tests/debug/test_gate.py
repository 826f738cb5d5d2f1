"""Rewrites that are left out, by name: the names stay, and the others are applied."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import fuseline
from fuseline.errors import UsageError
from fuseline.ir.core import Func, Loc, Value
from fuseline.ir.ops.pointwise import Add, Neg, Sub
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline_text import parse_pipeline
from fuseline.passes.record import Run
from fuseline.passes.rewrite import Rewrite

TEXT = """func @f(%x: f32[4, 8], %a: f32[4, 8], %b: f32[4, 8], %w: f32[8]) {
  %s = add %x, %a
  %y = rms_norm %s, %w
  %t = add %y, %b
  %z = rms_norm %t, %w
  return %s, %z
}"""
NAMES = ("fuse-add-rms-norm@%y#1", "fuse-add-rms-norm@%z#1")


def _run(func: Func | None = None, skip: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> Run:
    passes = parse_pipeline("fuse-add-rms-norm")
    return PassManager(passes, check=True, skip=skip, only=only).run(func or parse_func(TEXT))


def _names(run: Run) -> tuple[str, ...]:
    return tuple(applied.name for applied in run.applied)


def test_rewrites_have_names() -> None:
    assert _names(_run()) == NAMES


def test_one_is_left_out_and_the_other_keeps_its_name() -> None:
    for left, right in (NAMES, NAMES[::-1]):
        assert _names(_run(skip=(left,))) == (right,)
        assert _names(_run(only=(left,))) == (left,)


def test_one_that_starts_from_several_ops_has_one_name() -> None:
    """Each of the products that are merged proposes to merge them all."""
    text = """func @f(%x: f32[4, 8], %v: f32[8, 8] = param "v", %w: f32[8, 8] = param "w") {
      %a = linear %x, %v
      %b = linear %x, %w
      return %a, %b
    }"""
    passes = parse_pipeline("merge-linears")
    (applied,) = PassManager(passes, check=True).run(parse_func(text)).applied
    run = PassManager(passes, check=True, skip=(applied.name,)).run(parse_func(text))
    assert [op.name for op in run.func.ops] == ["linear", "linear"]


def test_no_rewrite_is_left_by_a_name_that_none_has() -> None:
    run = _run(only=("#",))
    assert print_func(run.func) == print_func(parse_func(TEXT))


def test_names_count_where_places_are_the_same() -> None:
    """Ops of one module have one place; the second keeps its number when the first is left out."""
    func = parse_func(TEXT)
    for op in func.ops:
        op.loc = Loc("layers.0", "model.py:7")
    first, second = _names(_run(func.clone()))
    assert (first, second) == ("fuse-add-rms-norm@layers.0#1", "fuse-add-rms-norm@layers.0#2")
    assert _names(_run(func, skip=(first,))) == (second,)


@dataclass(frozen=True)
class _SubOfAdd(Rewrite[Add], root=Add):
    """``x + y`` is ``x - -y``."""

    def rewrite(self, op: Add, func: Func) -> dict[Value, Value]:
        return {op.y: Sub(op.lhs, Neg(op.rhs).y).y}


@dataclass(frozen=True)
class _NegOfSub(Rewrite[Sub], root=Sub):
    """``x - y`` is ``-(y - x)``, where the latter is not there already."""

    def rewrite(self, op: Sub, func: Func) -> dict[Value, Value] | None:
        if any(isinstance(user, Neg) for user in func.users(op.y)):
            return None
        return {op.y: Neg(Sub(op.rhs, op.lhs).y).y}


def test_a_record_knows_what_it_needs() -> None:
    """The second rewrite replaces what the first one has made; what went away is kept, in order."""
    func = parse_func("func @f(%x: f32[4], %y: f32[4]) {\n  %s = add %x, %y\n  return %s\n}")
    run = PassManager([_SubOfAdd(), _NegOfSub()], check=True).run(func)
    assert [a.rewrite for a in run.applied] == [_SubOfAdd.name, _NegOfSub.name]
    assert [a.needs for a in run.applied] == [(), (1,)]
    assert [op.name for op in run.applied[0].removed] == ["add"]
    assert [op.name for op in run.applied[1].removed] == ["sub"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("garbage", "FL0101.*skip_rewrites.*garbage.*expected names such as"),
        ("nosuch@layers.0#1", "FL0104.*nosuch.*skip_rewrites"),
    ],
)
def test_a_name_that_no_rewrite_can_have_is_refused(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        fuseline.compile(torch.nn.Linear(3, 5), skip_rewrites=[name])
