"""The account of a func: its ops, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fuseline
from fuseline.debug.cost import costs_of
from fuseline.ir.text import parse_func
from fuseline.report import CostRecord
from tests.e2e.harness import report_of

TEXT = """func @f(%x: bf16[B, 64], %w: bf16[96, 64], %n: f32[64]) where B in 3..8 {
  %y = linear %x, %w @ "layers.0.up" "m.py:5"
  %p = permute %y {dims = (1, 0)} @ "layers.0.up" "m.py:6"
  %c = cast %p {dtype = f32}
  return %c
}"""


def test_the_bytes_and_flops_of_each_op_by_hand() -> None:
    linear, cast = costs_of(parse_func(TEXT), "eager", {"B": 5})
    moved = 2 * (5 * 64 + 96 * 64 + 5 * 96)
    assert linear == CostRecord(
        "eager", "layers.0.up", "m.py:5", "linear", "bf16", moved, 2 * 5 * 64 * 96
    )
    assert (cast.op, cast.module, cast.bytes, cast.flops) == ("cast", "", (2 + 4) * 5 * 96, 0)


def test_what_moves_elements_counts_no_operations() -> None:
    text = """func @f(%x: f32[5, 6], %s: f32[5, 2], %i: i64[2]) {
      %o = full {value = 1.0, shape = (5, 2), dtype = f32}
      %c = concat [%x, %o] {axis = 1}
      %p = pad %c {axis = 1, after = 1}
      %k = copy %p
      %a = slice_scatter %k, %s {axis = 1, start = 0, stop = 2}
      %b = index_copy %a, %i, %s {axis = 1}
      %t = permute %s {dims = (1, 0)}
      %q = index_put %b, [%i], %t {axes = (1,)}
      %r = index_put %q, [%i], %t {axes = (1,), accumulate = true}
      %y = add %r, %r
      return %y
    }"""
    found = {(c.op, c.flops) for c in costs_of(parse_func(text), "eager", {})}
    assert {op for op, flops in found if not flops} >= {
        "full", "concat", "pad", "copy", "slice_scatter", "index_copy", "index_put",
    }  # fmt: skip
    assert {(op, flops) for op, flops in found if flops} == {("index_put", 10), ("add", 45)}


def test_a_size_that_nobody_knows_counts_as_the_least() -> None:
    assert costs_of(parse_func(TEXT), "eager", {})[0].flops == 2 * 3 * 64 * 96


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(48)
        self.gate, self.up = nn.Linear(48, 80, bias=False), nn.Linear(48, 80, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return nn.functional.silu(self.gate(y)) * self.up(y)


def test_a_report_has_them_where_they_are_asked_for(tmp_path: Path) -> None:
    model = Mlp().eval()
    options: dict[str, Any] = {"cache_dir": tmp_path, "dynamic": True}
    plain = fuseline.compile(model, **options)
    with torch.no_grad():
        plain(torch.randn(7, 48))
    assert report_of(plain).costs == ()
    compiled = fuseline.compile(Mlp().eval(), cost=True, **options)  # nothing comes from the cache
    with torch.no_grad():
        compiled(torch.randn(7, 48))
    costs = report_of(compiled).costs
    weights = 2 * 48 * 80 * 4
    for form in ("eager", "compiled"):
        own = [c for c in costs if c.form == form]
        products = [c for c in own if c.flops >= 2 * 7 * 48 * 80]
        assert sum(c.bytes for c in products) >= weights
    eager, ours = (sum(c.form == form for c in costs) for form in ("eager", "compiled"))
    assert eager > ours > 0
    moved = {f: sum(c.bytes for c in costs if c.form == f) for f in ("eager", "compiled")}
    assert weights < moved["compiled"] < moved["eager"]


def test_experts_read_no_more_weights_than_there_are() -> None:
    text = """func @f(
      %x: f32[T, 8], %i: i64[T, 2], %w: f32[T, 2], %u: f32[4, 6, 8], %d: f32[4, 8, 3]
    ) where T in 1..64 {
      %y = experts %x, %i, %w, [%u], [%d] {experts = 4, dtype = f32,
        body = func @body(%gate: f32[], %up: f32[]) {
          %h = mul %gate, %up
          return %h
        }}
      return %y
    }"""
    func = parse_func(text)
    one, many = (costs_of(func, "eager", {"T": t})[0] for t in (1, 64))
    each = 6 * 8 + 8 * 3
    assert one.bytes == 4 * (8 + 2 + 8 + 2 * each) + 8 * 2
    assert many.bytes == 4 * (64 * (8 + 2 + 8) + 4 * each) + 8 * 2 * 64
    assert many.flops == 64 * one.flops == 64 * 2 * 2 * each
