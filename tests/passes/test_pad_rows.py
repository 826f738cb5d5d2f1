"""Which sizes may grow: what the analysis allows is the same in numbers, what it refuses has a
reason.
"""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from fuseline.assemble import _pad_rule  # pyright: ignore[reportPrivateUsage]
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func
from fuseline.ir.types import BufferType, IntType, substitute
from fuseline.passes.pad_rows import PaddedRows, pad_rows
from fuseline.runtime.graphs.buckets import Cut, fill
from fuseline.testing import make_arguments

REAL, WIDE, OTHER = 5, 8, 3
"""Rows of a call, of the larger one, and the value of every other symbol."""

LEGAL = {
    "rows by themselves": """func @f(%x: f32[S, 8], %r: f32[S, 8], %w: f32[8] = param "w",
                                     %m: f32[6, 8] = param "m") {
          %s, %y = add_rms_norm %x, %r, %w
          %z = linear %y, %m
          %g = silu %z
          %t = softmax %g {axis = 1}
          %n = sum %t {axes = (1,)}
          return %s, %t, %n
        }""",
    "rows of several widths": """func @f(%x: f32[1, S, 8], %z: f32[1, S, 6], %k: f32[1, S, 4],
                                          %c: f32[1, S, 4], %s: f32[1, S, 4]) {
          %y, %n, %r = merged_rows [%x, %z], [], [%k], %c, %s {width = 4}
          return %y, %n, %r
        }""",
    "a batch and a length": """func @f(%x: f32[B, S, 8], %m: f32[8, 8] = param "m") {
          %r = reshape %x {shape = (<B*S>, 8)}
          %y = linear %r, %m
          %z = reshape %y {shape = (B, S, 2, 4)}
          %t = permute %z {dims = (0, 2, 1, 3)}
          return %y, %t
        }""",
    "causal attention of its own keys": """func @f(%q: f32[2, 4, S, 8], %k: f32[2, 2, S, 8],
                                                   %v: f32[2, 2, S, 8]) {
          %y = attention %q, %k, %v {scale = 0.3, causal = true}
          %z = add %y, %q
          return %z
        }""",
    "its own positions": """func @f(%q: f32[1, 2, S, 8], %k: f32[1, 2, S, 8]) {
          %at = iota {length = S}
          %y = attention %q, %k, %k, _, %at {scale = 0.3, causal = true, window = 3}
          return %y
        }""",
    "a static cache": """func @f(%q: f32[1, 2, S, 8], %k: f32[1, 2, S, 8], %at: i64[S],
                                 %cache: buffer<f32[1, 2, 16, 8]>) {
          index_write %cache, %at, %k {axis = 2}
          %c = read %cache
          %y = attention %q, %c, %c, _, %at {scale = 0.3, causal = true}
          %l = slice %y {axis = 2, start = <S - 1>, stop = S}
          return %y, %l
        }""",
    "heads into a static cache": """func @f(%q: f32[1, S, 2, 8], %k: f32[1, S, 2, 8],
          %v: f32[1, S, 2, 8], %at: i64[S], %kc: buffer<f32[1, 2, 16, 8]>,
          %vc: buffer<f32[1, 2, 16, 8]>, %w: f32[8] = param "w", %cos: f32[1, S, 8],
          %sin: f32[1, S, 8]) {
          %y = qk_norm_rope_write %q, %k, %v, %at, %kc, %vc, %w, %w, _, _, %cos, %sin
            {width = 8}
          return %y
        }""",
    "adapters": """func @f(%x: f32[S, 8], %ids: i64[S], %r: f32[S, 6],
                           %a: f32[3, 2, 8] = param "a", %b: f32[3, 6, 2] = param "b") {
          %y = multi_lora %x, %ids, %a, %b, %r {delta_dtype = f32, dtype = f32}
          return %y
        }""",
    "experts": """func @f(%x: f32[S, 8], %r: f32[4, 8] = param "r", %u: f32[4, 12, 8] = param "u",
                          %d: f32[4, 8, 6] = param "d") {
          %l = linear %x, %r
          %w, %i = route %l {k = 2}
          %y = experts %x, %i, %w, [%u], [%d] {experts = 4, dtype = f32,
            body = func @b(%g: f32[6], %h: f32[6]) {
              %a = silu %g
              %o = mul %a, %h
              return %o
            }
          }
          return %y, %i
        }""",
    "token ids": """func @f(%ids: i64[B, S], %table: f32[16, 8] = param "t") {
          %x = embedding %table, %ids
          %first = slice %x {axis = 1, start = 0, stop = 1}
          return %x, %first
        }""",
    "learned positions": """func @f(%x: f32[S, 8], %table: f32[16, 8] = param "t") {
          %at = iota {length = S}
          %p = embedding %table, %at
          %c = slice %table {axis = 0, start = 2, stop = <S + 2>}
          %y = add %x, %p
          %z = add %y, %c
          return %z
        }""",
    "a mask of queries and keys": """func @f(%q: f32[1, 2, S, 8], %m: bool[1, 1, S, S]) {
          %y = attention %q, %q, %q, %m {scale = 0.3, causal = true}
          return %y
        }""",
    "a batched product": """func @f(%a: f32[S, 3, 4], %b: f32[S, 4, 2]) {
          %y = matmul %a, %b
          %f = full {value = 2.0, shape = (S, 1, 1), dtype = f32}
          %z = mul %y, %f
          return %z
        }""",
}

REFUSED = {
    "sum goes across the rows": """func @f(%x: f32[S, 8]) {
          %y = sum %x {axes = (0,)}
          return %y
        }""",
    "cumsum goes across the rows": """func @f(%x: f32[S, 8]) {
          %y = cumsum %x {axis = 0}
          return %y
        }""",
    "pointwise depends on the size itself|value is computed from the size": """func @f(
          %x: f32[S, 8]) {
          %n = full {value = S, dtype = f32}
          %y = div %x, %n
          return %y
        }""",
    "cache has this size, and is written in place": """func @f(%x: f32[S, 8],
          %cache: buffer<f32[S, 8]>) {
          write %cache, %x
          return %x
        }""",
    "index_write would write rows that are not there": """func @f(%x: f32[S, 8],
          %cache: buffer<f32[16, 8]>) {
          %at = iota {length = S, start = 3}
          index_write %cache, %at, %x {axis = 0}
          return %x
        }""",
    "slice_write depends on the size itself": """func @f(%x: f32[S, 8],
          %cache: buffer<f32[16, 8]>) {
          slice_write %cache, %x {axis = 0, start = 0, stop = S}
          return %x
        }""",
    "sees keys of this size, and no causal mask": """func @f(%q: f32[1, 2, S, 8]) {
          %y = attention %q, %q, %q {scale = 0.3}
          return %y
        }""",
    "sees keys of this size": """func @f(%q: f32[1, 2, 3, 8], %k: f32[1, 2, S, 8],
          %at: i64[3]) {
          %y = attention %q, %k, %k, _, %at {scale = 0.3, causal = true}
          return %y
        }""",
    "an added value may be infinite": """func @f(%q: f16[1, 2, S, 8]) {
          %y = attention %q, %q, %q {scale = 0.3, causal = true}
          return %y
        }""",
    "aten.call is not known": """func @f(%x: f32[S]) {
          %s, %i = aten.call [%x] {
            target = "aten.sort.default", args = ($0,), kwargs = (), types = (f32[S], i64[S])
          }
          return %s
        }""",
    "a slice takes rows from the end": """func @f(%q: f32[1, 2, S, 8]) {
          %y = attention %q, %q, %q {scale = 0.3, causal = true}
          %l = slice %y {axis = 2, start = <S - 1>, stop = S}
          return %l
        }""",
    "concat goes across the rows": """func @f(%x: f32[S, 8], %past: f32[4, 8]) {
          %y = concat [%past, %x] {axis = 0}
          return %y
        }""",
    "a reshape": """func @f(%x: f32[S, S, 2]) {
          %y = reshape %x {shape = (<S*S>, 2)}
          return %y
        }""",
    "index goes across the rows": """func @f(%x: f32[S, 8], %at: i64[2]) {
          %y = index %x, [%at] {axes = (0,)}
          return %y
        }""",
    "embedding would read where an added row points": """func @f(%x: f32[S, 8],
          %table: f32[16, 8] = param "t") {
          %at = iota {length = S, start = 3}
          %y = embedding %table, %at
          return %y
        }""",
    "has a size 2.S": """func @f(%x: f32[S, 8], %y: f32[2*S, 8]) {
          return %x, %y
        }""",
    "w has this size, and is a param": """func @f(%x: f32[3, S], %w: f32[2, S] = param "w") {
          %y = linear %x, %w
          return %y
        }""",
}


@pytest.mark.parametrize("text", LEGAL.values(), ids=LEGAL)
def test_a_call_of_more_rows_gives_the_same(text: str) -> None:
    func = parse_func(text)
    for name, found in pad_rows(func).items():
        assert isinstance(found, PaddedRows), f"{name}: {found}"
        assert_same(func, name, found)


def assert_same(func: Func, name: str, found: PaddedRows) -> None:
    """Run a func at its own size and a larger one, and compare results and state."""
    own = dict.fromkeys(func.symbols, OTHER) | {name: REAL}
    wide = own | {name: WIDE}
    assert all(substitute(limit, own) >= WIDE for limit in found.limits)
    given = make_arguments(func, own)
    grown = [a.clone() if isinstance(a, Tensor) else a for a in given]
    for number in {number for number, _ in found.args}:
        dims = [each for each in _pad_rule(found).args if each.arg == number]
        small = cast("Tensor", given[number])
        shape = [substitute(extent, wide) for extent in func.args[number].shape]
        fill(memory := torch.empty(shape, dtype=small.dtype), small, dims)
        grown[number] = memory
    for number, arg in enumerate(func.args):
        if isinstance(arg.type, IntType):
            grown[number] = substitute(arg.type.value, wide)
    exact, larger = evaluate(func, given), evaluate(func, grown)
    for want, got, dims in zip(exact, larger, found.returns, strict=True):
        for axis, outer, inner in dims:
            got = Cut(axis, substitute(outer, own), WIDE, substitute(inner, own), REAL)(got)
        assert got.shape == want.shape
        torch.testing.assert_close(got, want)
    for arg, one, other in zip(func.args, given, grown, strict=True):
        if isinstance(arg.type, BufferType):
            assert torch.equal(cast("Tensor", one), cast("Tensor", other))


@pytest.mark.parametrize(("reason", "text"), REFUSED.items(), ids=REFUSED)
def test_no_size_grows_where_rows_meet(reason: str, text: str) -> None:
    found = pad_rows(parse_func(text))["S"]
    assert isinstance(found, str)
    assert any(part in found for part in reason.replace("2.S", "2*S").split("|")), found


def test_limits_are_those_of_what_is_read() -> None:
    found = pad_rows(parse_func(LEGAL["learned positions"]))["S"]
    assert isinstance(found, PaddedRows)
    assert sorted(map(int, found.limits)) == [14, 16]


def test_one_size_may_grow_where_another_may_not() -> None:
    func = parse_func("""func @f(%x: f32[B, S, 8]) {
      %y = sum %x {axes = (1,)}
      return %y
    }""")
    found = pad_rows(func)
    assert isinstance(found["B"], PaddedRows)
    assert found["S"] == "sum goes across the rows"


def test_a_fused_region_is_its_ops() -> None:
    text = """func @f(%x: f32[S, 8]) {{
      %y = pointwise [%x] {{
        body = func @b(%a: f32[S, 8]) {{
          %n = sum %a {{axes = ({0},), keepdim = true}}
          %o = div %a, %n
          return %o
        }}
      }}
      return %y
    }}"""
    along, across = (pad_rows(parse_func(text.format(axis)))["S"] for axis in (1, 0))
    assert isinstance(along, PaddedRows)
    assert across == "sum goes across the rows"


def test_an_integer_that_nothing_reads_may_grow() -> None:
    func = parse_func("func @f(%x: f32[3], %n: int<P>) { %y = add %x, %x  return %y }")
    found = pad_rows(func)["P"]
    assert found == PaddedRows((), ((),))
