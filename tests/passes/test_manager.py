"""The pass manager: what it applies, in which order, and what it writes down."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fuseline.ir.core import Func, IRError, Loc, Value
from fuseline.ir.ops.pointwise import Add, Mul, Neg, Sub
from fuseline.ir.text import parse_func, print_func
from fuseline.passes.manager import PassManager
from fuseline.passes.plan import ProtectReads
from fuseline.passes.rewrite import FuncPass, NoMatch, Replace, Rewrite

TEXT = """func @f(%x: f32[4], %y: f32[4]) {
  %n = neg %y
  %a = add %x, %n
  %b = add %x, %y
  return %a, %b
}"""


@dataclass(frozen=True)
class _AddOfNeg(Rewrite[Add], root=Add, pattern="add_rms_norm"):
    """``x + -y`` is ``x - y``."""

    def rewrite(self, op: Add, func: Func) -> Replace | NoMatch | None:
        if not isinstance(op.rhs.owner, Neg):
            return NoMatch("rhs is not a neg")
        return Replace({op.y: Sub(op.lhs, op.rhs.owner.x).y}, held=("rhs is a neg",))


@dataclass(frozen=True)
class _NarrowSub(Rewrite[Sub], root=Sub, pattern="add_rms_norm"):
    """Misses what `_AddOfNeg` has made."""

    def rewrite(self, op: Sub, func: Func) -> NoMatch:
        return NoMatch("lhs is too wide", {"lhs": str(op.lhs.type)})


@dataclass(frozen=True)
class _Broken(FuncPass):
    """Leaves an op that reads a value of another func."""

    def run(self, func: Func) -> None:
        stranger = Value(func.args[0].type, "stranger")
        func.append(Neg(stranger))


@dataclass(frozen=True)
class _Endless(Rewrite[Mul], root=Mul):
    """Swaps the operands for ever."""

    def rewrite(self, op: Mul, func: Func) -> dict[Value, Value]:
        return {op.y: Mul(op.rhs, op.lhs).y}


def _located() -> Func:
    func = parse_func(TEXT)
    for number, op in enumerate(func.ops):
        op.loc = Loc(f"layers.{number}", "model.py:7")
    return func


def test_names_follow_from_the_class() -> None:
    assert ProtectReads.name == "protect-reads"


def test_rewrite_is_applied_and_recorded() -> None:
    """New op in, dead ops out, the miss kept beside the site."""
    func = _located()
    run = PassManager([_AddOfNeg()], check=True).run(func)
    assert [op.name for op in func.ops] == ["sub", "add"]
    (applied,) = run.applied
    assert (applied.number, applied.held) == (1, ("rhs is a neg",))
    assert (applied.before.bytes, applied.after.bytes) == (80, 48)
    assert [(s.status, s.where, s.reason) for s in run.sites()] == [
        ("fused", "layers.1 (model.py:7)", ""),
        ("missed", "layers.2 (model.py:7)", "rhs is not a neg"),
    ]


def test_a_later_miss_takes_the_place_of_the_site() -> None:
    """Recognised by one pass, and left by another: users are to see why."""
    run = PassManager([_AddOfNeg(), _NarrowSub()], check=True).run(_located())
    assert [(s.status, s.where, s.reason, s.details) for s in run.sites()] == [
        ("missed", "layers.2 (model.py:7)", "rhs is not a neg", {}),
        ("missed", "layers.1 (model.py:7)", "lhs is too wide", {"lhs": "f32[4]"}),
    ]


def test_limit_stops_applying() -> None:
    func = _located()
    run = PassManager([_AddOfNeg()], limit=0).run(func)
    assert not run.applied
    assert print_func(func) == print_func(parse_func(TEXT))


def test_disabled_passes_do_not_run() -> None:
    run = PassManager([_AddOfNeg()], disable=[_AddOfNeg.name]).run(_located())
    assert run.passes == []


def test_an_invalid_func_names_the_pass() -> None:
    with pytest.raises(IRError, match="after _-broken"):
        PassManager([_Broken()], check=True).run(_located())


def test_a_rewrite_that_never_ends_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    func = parse_func("func @f(%x: f32[4], %y: f32[4]) {\n%m = mul %x, %y\nreturn %m }")
    PassManager([_Endless()], check=True).run(func)
    assert "still changes" in caplog.text
