"""Norms, rotations, attention and gathers from a func in text form to numbers.

The kernels have tests of their own; here it is the layouts, the order of the arguments and the
choice of the kernel that count, on values that views have moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func
from tests.codegen.cases import Make, check_numbers
from tests.codegen.cpu.region_harness import native
from tests.codegen.machine import Machine, check_machines
from tests.codegen.oracle import seeded
from tests.codegen.row_cases import ROWS


def run(func: Func, arguments: Sequence[Tensor], nth: int) -> Machine:
    """What the func was lowered to, after a run with so many workers."""
    return Machine(func, arguments, native(nth), workers=nth)


def check(text: str, arguments: Sequence[Tensor], *, ops: Sequence[str] | None) -> None:
    """The launches give what the references give, and those in float64; ``ops`` are launched."""
    for nth in (1, 2, 3):
        check_machines(text, arguments, lambda func, n=nth: run(func, arguments, n), ops=ops)


@pytest.mark.parametrize("case", ROWS)
def test_cases(case: Make) -> None:
    check_numbers(case, check)


def test_qk_norm_rope_into_a_cache_then_attention_over_it() -> None:
    text = """func @f(%x: bf16[B, S, 64], %w: bf16[12], %c: bf16[1, S, 12], %s: bf16[1, S, 12],
                      %at: i64[S], %kc: buffer<bf16[B, 2, 9, 12]>, %vc: buffer<bf16[B, 2, 9, 4]>) {
      %qs = slice %x {axis = 2, start = 0, stop = 24}
      %q = reshape %qs {shape = (B, S, 2, 12)}
      %ks = slice %x {axis = 2, start = 24, stop = 48}
      %k = reshape %ks {shape = (B, S, 2, 12)}
      %vs = slice %x {axis = 2, start = 48, stop = 56}
      %v = reshape %vs {shape = (B, S, 2, 4)}
      %y = qk_norm_rope_write %q, %k, %v, %at, %kc, %vc, %w, %w, _, _, %c, %s {width = 12}
      %keys = read %kc
      %values = read %vc
      %o = attention %y, %keys, %values, _, %at {scale = 0.3, causal = true}
      %t = permute %o {dims = (0, 2, 1, 3)}
      %r = reshape %t {shape = (B, S, 8)}
      return %r
    }"""
    for tokens in (1, 3, 9):
        arguments = [
            seeded(2, tokens, 64, dtype=torch.bfloat16),
            seeded(12, dtype=torch.bfloat16, seed=1),
            *(seeded(1, tokens, 12, dtype=torch.bfloat16, seed=i) for i in (2, 3)),
            torch.arange(tokens),
            torch.zeros(2, 2, 9, 12, dtype=torch.bfloat16),
            torch.zeros(2, 2, 9, 4, dtype=torch.bfloat16),
        ]
        check(text, arguments, ops=["qk_norm_rope_write", "attention"])


@pytest.mark.parametrize("queries", [1, 4, 13])
def test_attention_over_transposed_heads(queries: int) -> None:
    """Few rows and many, the choice made at run time; masks that broadcast; windows and sinks."""
    text = """func @f(%q: f32[B, S, 4, 16], %k: f32[B, T, 2, 16], %v: f32[B, T, 2, 8],
                      %m: bool[B, 1, S, T], %p: i64[B, S], %sink: f32[4]) {
      %a = permute %q {dims = (0, 2, 1, 3)}
      %b = permute %k {dims = (0, 2, 1, 3)}
      %c = permute %v {dims = (0, 2, 1, 3)}
      %y = attention %a, %b, %c, %m {scale = 0.25}
      %z = attention %a, %b, %c, _, %p, %sink
        {scale = 0.25, causal = true, window = 5, softcap = 3.0}
      return %y, %z
    }"""
    keys = 21
    arguments = [
        seeded(2, queries, 4, 16, dtype=torch.float32),
        seeded(2, keys, 2, 16, dtype=torch.float32, seed=1),
        seeded(2, keys, 2, 8, dtype=torch.float32, seed=2),
        seeded(2, 1, queries, keys, dtype=torch.float32, seed=3) > -0.5,
        torch.stack([torch.arange(queries), torch.arange(queries) + 8]),
        seeded(4, dtype=torch.float32, seed=4),
    ]
    check(text, arguments, ops=["attention", "attention"])


def test_a_step_on_a_long_cache_is_split_over_the_workers() -> None:
    text = """func @f(%q: f32[1, 3, 1, 16], %kc: buffer<f32[1, 1, 700, 16]>, %p: i64[1]) {
      %k = read %kc
      %y = attention %q, %k, %k, _, %p {scale = 0.25, causal = true}
      return %y
    }"""
    arguments = [
        seeded(1, 3, 1, 16, dtype=torch.float32),
        seeded(1, 1, 700, 16, dtype=torch.float32),
    ]
    check(text, [*arguments, torch.tensor([680])], ops=["attention"])


def test_gathers_and_argmax() -> None:
    text = """func @f(%w: bf16[11, 6], %i: i64[B, S], %c: buffer<bf16[B, 3, 9, 2]>, %at: i64[S],
                      %logits: bf16[B, S, 40]) {
      %e = embedding %w, %i
      %h = reshape %e {shape = (B, S, 3, 2)}
      %t = permute %h {dims = (0, 2, 1, 3)}
      index_write %c, %at, %t {axis = 2}
      %last = slice %logits {axis = 1, start = 1, stop = 2}
      %n = argmax %last {axis = 2}
      return %e, %n
    }"""
    arguments = [
        seeded(11, 6, dtype=torch.bfloat16),
        torch.tensor([[3, 10, 0], [1, 1, 7]]),
        torch.zeros(2, 3, 9, 2, dtype=torch.bfloat16),
        torch.tensor([8, 0, 4]),
        seeded(2, 3, 40, dtype=torch.bfloat16, seed=1),
    ]
    func = parse_func(text)
    own = [a.clone() for a in arguments]
    want = evaluate(parse_func(text), own)
    for nth in (1, 3):
        machine = run(func, arguments, nth)
        for value, expected in zip(func.returns, want, strict=True):
            assert torch.equal(machine.tensor(value), expected)
        assert torch.equal(machine.memory[func.args[2]], own[2])
